"""On a GPU everything works as on the processor, to a tolerance, and gives the same bits each time it is done again.

That a step never waits for the GPU is seen to in tests/training/test_synchronization.py.
"""

import dataclasses

import pytest
import torch

import labutils as lab
from labutils.data import device as placing
from labutils.data.augmentation import augmented
from labutils.data.loading import find_device
from labutils.experiments import sweeps
from labutils.methods.distillation import Distillation, Teacher, cached_answer, consistent_answer, mean_entropy
from labutils.training import OutOfMemory
from labutils.training.numerics import autocast, has_native_bf16, prepare, seeded

GPU = find_device()
CPU = torch.device("cpu")
CUDA_ALONE = pytest.mark.skipif(GPU.type != "cuda", reason="torch finds no NVIDIA GPU here")

pytestmark = pytest.mark.skipif(GPU.type == "cpu", reason="torch finds no GPU here")


@pytest.fixture(scope="module")
def few():
    """A few digits on the processor, and the same on the GPU."""
    return [lab.load_data("mnist", source="builtin", limit=300, device=str(device)) for device in (CPU, GPU)]


@pytest.fixture(scope="module")
def shapes():
    """A few drawn shapes on the processor, and the same on the GPU."""
    return [lab.load_data("cifar10", source="builtin", limit=300, device=str(device)) for device in (CPU, GPU)]


def mlp():
    return lab.MLP(3, 16, normalization="batch")


def resnet():
    return lab.ResNet((1, 1, 1, 1), width=4)


def shallow():
    return lab.ShallowCNN((4, 8, 8))


def built(build):
    with seeded(0, CPU):
        return build()


def close(found, expected, tolerance=1e-3):
    found, expected = found.detach().cpu().float(), expected.detach().cpu().float()
    assert torch.allclose(found, expected, rtol=tolerance, atol=tolerance), (found - expected).abs().max()


def test_data_are_the_same_on_the_gpu(few):
    here, there = few
    assert {part.images.device.type for part in (there.train, there.validation, there.test)} == {GPU.type}
    assert there.device.type == there.mean.device.type == there.train.labels.device.type == GPU.type
    assert there.digest == here.digest
    assert torch.equal(there.mean.cpu(), here.mean)
    assert torch.equal(there.std.cpu(), here.std)
    assert GPU.type in repr(there)


@pytest.mark.parametrize("augment", [None, "basic", "mild", "slight", "strong"])
def test_batches_are_the_same_on_the_gpu(augment, shapes):
    made = [
        list(lab.batches(data.train, data, 50, generator=torch.Generator().manual_seed(1), augment=augment))
        for data in shapes
    ]
    for (images, labels), (on_gpu, labels_there) in zip(*made, strict=True):
        assert on_gpu.device.type == GPU.type
        assert torch.equal(labels, labels_there.cpu())
        if augment == "strong":  # its interpolation is rounded to whole levels, one of which is up to 0.03
            assert (images - on_gpu.cpu()).abs().mean() < 0.01
        else:
            close(on_gpu, images, 1e-5)


@pytest.mark.parametrize("augment", [None, "basic", "slight", "strong"])
def test_images_that_do_not_fit_are_sent_a_part_at_a_time(augment, shapes, monkeypatch):
    monkeypatch.setattr(placing, "free_memory", lambda device: 1000)
    data = lab.load_data("cifar10", source="builtin", limit=300, device=str(GPU))
    assert data.train.images.device == CPU
    assert data.device.type == data.train.labels.device.type == GPU.type
    made = [
        list(lab.batches(one.train, one, 50, generator=torch.Generator().manual_seed(1), augment=augment))
        for one in (data, shapes[1])
    ]
    for (images, labels), (resident, labels_there) in zip(*made, strict=True):
        assert images.device == resident.device
        assert torch.equal(labels, labels_there)
        assert (images - resident).abs().mean() < (0.01 if augment == "strong" else 1e-6)
    history = lab.fit(built(resnet), data, lab.Training(epochs=1, augment=augment), progress=False)
    assert history.frame["validation_loss"].notna().all()


def test_the_free_memory_is_asked_of_the_gpu():
    before = placing.free_memory(GPU)
    kept = torch.ones(2**26, device=GPU)  # 256 MiB
    assert 0 < placing.free_memory(GPU) < before
    del kept


@pytest.mark.parametrize("build", [mlp, resnet, shallow])
def test_a_model_answers_and_learns_as_on_the_processor(build, few, shapes):
    gradients = []
    for data in few if build is mlp else shapes:
        model = built(build)
        images, labels = next(lab.batches(data.train, data, 60))
        prepare(model, data.device)
        logits = model.train()(images)
        torch.nn.functional.cross_entropy(logits, labels).backward()
        gradients.append([logits, *(one.grad for one in model.parameters() if one.requires_grad)])
    for here, there in zip(*gradients, strict=True):
        assert there.device.type == GPU.type
        close(there, here, 1e-3 * (1 + here.abs().max().item()))


def test_convolutions_lie_in_memory_as_is_right_there(shapes):
    model = built(resnet)
    prepare(model, GPU)
    layout = torch.contiguous_format if GPU.type == "mps" else torch.channels_last
    weight = model.stages[1][0].conv1.weight
    assert weight.is_contiguous(memory_format=layout)
    data = shapes[1]
    order = torch.Generator().manual_seed(0)
    images, _ = next(lab.batches(data.train, data, 50, generator=order, augment="basic"))
    assert images.is_contiguous(memory_format=layout)
    assert model.stages[0](model.stem(images)).is_contiguous(memory_format=layout)


def test_convolutions_compute_in_bf16_where_the_gpu_does(shapes):
    data, model = shapes[1], built(resnet)
    prepare(model, GPU)
    with autocast(model, GPU, "auto"):
        logits = model(data.normalise(data.train.images[:8]))
    assert logits.dtype == (torch.bfloat16 if has_native_bf16(GPU) else torch.float32)


SGD = {"optimizer": "sgd", "lr": 0.05}
MUON = {"optimizer": "muon", "lr": 0.05}
RECIPES = {
    "adam": (mlp, {}),
    "dropout": (lambda: lab.MLP(2, 16, dropout=0.3), {"optimizer": "adamw", "weight_decay": 0.1}),
    "sgd, plateau, patience": (mlp, SGD | {"scheduler": "plateau", "patience": 3}),
    "one cycle, strong, rates by stage": (
        resnet,
        SGD | {"scheduler": "onecycle", "augment": "strong", "stage_lr": 0.5},
    ),
    "cosine, basic": (resnet, {"scheduler": "cosine", "augment": "basic", "label_smoothing": 0.1}),
    "muon, averaging, slight, whitening": (shallow, MUON | {"averaging": 0.5, "augment": "slight", "whitening": True}),
    "as the GPU does best": (resnet, MUON | {"precision": "auto", "scheduler": "triangular"}),
}
UNLIKE = ("dropout", "as the GPU does best")  # which are not meant to be as on the processor


def trained(recipe, few, shapes, device, **options):
    """The history's figures and the weights that a recipe comes to."""
    build, settings = RECIPES[recipe]
    model = built(build)
    data = (few if isinstance(model, lab.MLP) else shapes)[device.type != "cpu"]
    training = lab.Training(**{"epochs": 4, "batch_size": 40, "precision": "fp32"} | settings)
    history = lab.fit(model, data, training, progress=False, **options)
    weights = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    return history.frame.drop(columns="seconds"), weights


@pytest.mark.parametrize("recipe", [recipe for recipe in RECIPES if recipe not in UNLIKE])
def test_the_first_epoch_is_as_on_the_processor(recipe, few, shapes):
    here, there = (trained(recipe, few, shapes, device)[0].iloc[0] for device in (CPU, GPU))
    assert there["train_loss"] == pytest.approx(here["train_loss"], rel=0.03)
    assert there["lr"] == here["lr"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_same_training_gives_the_same_bits(recipe, few, shapes):
    first, again = trained(recipe, few, shapes, GPU), trained(recipe, few, shapes, GPU)
    assert first[0].equals(again[0])
    assert all(torch.equal(first[1][name], again[1][name]) for name in first[1])


@pytest.mark.parametrize("recipe", RECIPES)
def test_resumed_it_ends_as_if_never_stopped(recipe, few, shapes, interrupt_after, tmp_path):
    whole, checkpoint = trained(recipe, few, shapes, GPU), tmp_path / "checkpoint"
    with pytest.raises(lab.Interrupted):
        trained(recipe, few, shapes, GPU, callbacks=[interrupt_after(2.4)], checkpoint=checkpoint)
    resumed = trained(recipe, few, shapes, GPU, checkpoint=checkpoint)
    assert resumed[0].equals(whole[0])
    assert all(torch.equal(resumed[1][name], whole[1][name]) for name in whole[1])


@pytest.mark.parametrize("make_answer", [cached_answer, consistent_answer])
def test_a_student_learns_from_a_teacher(make_answer, few):
    losses = []
    for data in few:
        teacher = Teacher(make_answer(built(mlp), data), Distillation(teacher="anyone"))
        student = built(lambda: lab.MLP(2, 8))
        training = lab.Training(epochs=2, precision="fp32")
        history = lab.fit(student, data, training, loss=teacher.loss, callbacks=[teacher], progress=False)
        losses.append(history.frame["train_loss"].iloc[-1])
    assert losses[1] == pytest.approx(losses[0], rel=0.01)


def test_a_seed_on_the_gpu_counts_inside_and_nothing_is_left_of_it():
    def draw():
        return torch.rand(3, device=GPU)

    torch.manual_seed(1)
    expected = draw()
    torch.manual_seed(1)
    with seeded(5, GPU):
        first = draw()
    assert torch.equal(draw(), expected)
    with seeded(5, GPU):
        assert torch.equal(draw(), first)


def test_instruments_measure_as_on_the_processor(few, shapes):
    tables = []
    for digits, photos in zip(few, shapes, strict=True):
        mlp_, cnn = built(mlp), built(resnet)
        prepare(mlp_, digits.device)
        prepare(cnn, photos.device)
        images, labels = next(lab.batches(digits.train, digits, 60))
        pictures, named = next(lab.batches(photos.train, photos, 20))
        logits, truth = lab.predict(mlp_, "validation", digits, precision="fp32")
        tables.append(
            [
                lab.gradient_norms(cnn, pictures, named)["norm"],
                lab.probes.activation_gradients(mlp_, images, labels)["norm"],
                lab.probes.gradient_correlation(mlp_, images[0], images[1])["correlation"],
                lab.probes.loss_surface(mlp_, images, labels, points=3)["loss"],
                lab.probes.lesion_study(mlp_, "validation", digits)["loss"],
                lab.probes.calibration(logits, truth)["accuracy"],
                [lab.probes.calibration_error(logits, truth), mean_entropy(logits, 2.0)],
                lab.probes.class_activation_maps(cnn, pictures).flatten().tolist(),
                list(lab.describe(cnn).values()),
            ]
        )
    for here, there in zip(*tables, strict=True):
        assert list(there) == pytest.approx(list(here), rel=1e-2, abs=1e-3)


def test_features_and_heads_for_them_are_as_on_the_processor(shapes, tmp_path):
    found = []
    for data in shapes:
        model = built(resnet).eval()
        parts = [
            lab.extract_features(model, part, data, precision="fp32", cache=tmp_path) for part in ("train", "test")
        ]
        kept = lab.extract_features(model, "train", data, precision="fp32", cache=tmp_path)
        assert torch.equal(kept[0], parts[0][0])
        assert kept[0].device.type == data.device.type
        accuracies = [head(*parts)["top1"] for head in (lab.knn, lab.linear_svm, lab.linear_probe)]
        found.append((parts[0][0], lab.extract_logits(model, "test", data, precision="fp32")[0], accuracies))
    close(found[1][0], found[0][0])
    close(found[1][1], found[0][1])
    assert found[1][2] == pytest.approx(found[0][2], abs=0.03)


@pytest.mark.parametrize("views", [1, 2, 6])
def test_evaluation_is_as_on_the_processor(views, shapes):
    here, there = (lab.evaluate(built(resnet), "test", data, precision="fp32", views=views)["loss"] for data in shapes)
    assert there == pytest.approx(here, rel=1e-3)


SMALL = {"blocks": [1, 1, 1, 1], "width": 4}
EXPERIMENTS = {
    "mlp_mnist": {"depth": 2, "width": 16, "epochs": 2},
    "cnn_depth": SMALL,
    "cnn_shallow": {},
    "distillation": SMALL,
    "consistent": SMALL | {"consistent": True},
    "fine_tuning": {},
    "progressive": {"progressive": True, "stages": 2},
    "knn": {"method": "knn"},
    "svm": {"method": "svm"},
    "probe": {"method": "probe"},
}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_runs_and_is_found_again(name, store):
    transfers = ("fine_tuning", "progressive", "knn", "svm", "probe")
    config = "transfer_ladder" if name in transfers else "distillation" if name == "consistent" else name
    experiment = lab.Experiment.load(config, profile="smoke", **EXPERIMENTS[name])
    first = lab.run(experiment, progress=False)
    assert first.metrics["device"] != "cpu"
    again = lab.run(experiment, progress=False)
    assert again.path == first.path
    data = lab.load_data(**experiment.data)
    loss = lab.evaluate(again.model, "test", data, precision=experiment.training.precision)["loss"]
    assert loss == pytest.approx(first.metrics["test_loss"], rel=1e-3)
    repeated = lab.run(experiment, force=True, progress=False)
    votes = 1e-6 if name == "knn" else 0  # which the GPU adds up in any order
    assert repeated.metrics["test_loss"] == pytest.approx(first.metrics["test_loss"], rel=votes, abs=0)


def test_a_sweep_gives_each_gpu_a_worker(store, experiment):
    seeds = [experiment.override(seed=seed) for seed in range(3)]
    gpus = torch.cuda.device_count() if GPU.type == "cuda" else 1
    assert sweeps.local_jobs(None) == gpus
    table = lab.sweep(seeds, progress=False)
    assert "error" not in table
    alone = lab.run(seeds[2], force=True, progress=False)
    assert table["test_loss"][2] == pytest.approx(alone.metrics["test_loss"], rel=1e-3)


@CUDA_ALONE
def test_a_worker_holds_its_gpu_until_it_ends(store):
    claim = sweeps.claim_gpu.__wrapped__
    held = claim()
    try:
        assert held.is_locked
        if torch.cuda.device_count() > 1:
            second = claim()
            assert second.lock_file != held.lock_file
            second.release()
    finally:
        held.release()
        torch.cuda.set_device(0)


@CUDA_ALONE
def test_memory_that_runs_out_is_one_line_and_leaves_the_gpu_usable(shapes):
    data = shapes[1]
    images = data.train.images.repeat(10, 1, 1, 1)
    large = dataclasses.replace(data, train=lab.Split(images, data.train.labels.repeat(10)))
    wide = lab.ResNet((1, 1, 1, 1), width=64)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 400 * 2**20) / total)
    try:
        with pytest.raises(OutOfMemory) as caught:
            lab.fit(wide, large, lab.Training(epochs=1, batch_size=len(images)), progress=False)
        message = str(caught.value)
        assert f"{len(images):,} images at once through ResNet(" in message
        assert "tried to allocate" in message
        assert "Lower batch_size" in message
        assert "\n" not in message
        assert all(parameter.grad is None for parameter in wide.parameters())
        history = lab.fit(wide, data, lab.Training(epochs=1, batch_size=20), progress=False)  # the memory is free again
        assert history.frame["train_loss"].notna().all()
        with pytest.raises(OutOfMemory, match="Lower the network's width or depth"):
            lab.evaluate(lab.MLP(3, 20_000, in_features=3072), "test", data)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_explorers_and_figures_take_what_lies_on_the_gpu(few, store):
    data, model = few[1], built(mlp)
    logits, labels = lab.predict(model, "validation", data)
    images = data.validation.images
    lab.plots.image_grid(images[:10], labels[:10], data.classes, predictions=logits[:10].argmax(1))
    lab.plots.confusion_matrix(labels, logits.argmax(1), data.classes)
    lab.explorers.GradientExplorer(data, {"depth": [2, 3], "width": [8]})
    lab.explorers.TemperatureExplorer(images[:4], labels[:4], logits[:4], data.classes, [1, 4])


def test_the_generator_is_the_processors_so_that_every_device_draws_alike(shapes):
    drawn = [
        augmented(data.train.images, torch.arange(40, device=data.device), "basic", torch.Generator().manual_seed(2))
        for data in shapes
    ]
    assert torch.equal(drawn[0], drawn[1].cpu())
