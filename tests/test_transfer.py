"""Features, the heads found for them, unfreezing, and transfer as an experiment."""

import math
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import labutils as lab
from labutils import backbones, extraction, transfer
from labutils.checkpoints import load_tensors, save_tensors
from labutils.models import CNN, build_model
from labutils.runs import load_experiment_data


@pytest.fixture(scope="module")
def shapes() -> lab.ImageData:
    """The stand-in of CIFAR-10, small."""
    return lab.load_data("cifar10", source="builtin", limit=400, validation=0.2, device="cpu")


@pytest.fixture
def net() -> lab.ResNet:
    torch.manual_seed(0)
    return lab.ResNet([1, 1, 1, 1], width=4, zero_init_residual=False).eval()


def blobs(count, classes, width=12, seed=0):
    """Features around a centre for each class, and their labels."""
    random = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(9))
    labels = torch.arange(count) % classes
    return 3 + 2 * centres[labels] + 1.5 * torch.randn(count, width, generator=random), labels


# Features


def test_features_are_what_the_head_sees(net, shapes, store):
    features, labels = lab.extract_features(net, "validation", shapes, precision="fp32")
    logits, truth = lab.predict(net, "validation", shapes, precision="fp32")
    assert features.shape == (len(shapes.validation), net.head.in_features)
    assert torch.allclose(net.head(features), logits, atol=1e-5)
    assert torch.equal(labels, truth)


def test_features_are_kept_in_the_store_and_found_again(net, shapes, store, monkeypatch):
    net.train()
    first = lab.extract_features(net, "test", shapes)
    assert net.training
    assert len(list(store.rglob("*.safetensors"))) == 1
    monkeypatch.setattr(extraction, "outputs", lambda *_, **__: pytest.fail("extracted again"))
    assert torch.equal(lab.extract_features(net, "test", shapes)[0], first[0])
    torch.nn.init.zeros_(net.head.weight)  # which features do not depend on
    assert torch.equal(lab.extract_features(net, "test", shapes)[0], first[0])


def test_other_weights_images_and_precisions_have_features_of_their_own(net, shapes, store):
    def kept():
        return len(list(store.rglob("*.safetensors")))

    lab.extract_features(net, "test", shapes, precision="fp32")
    lab.extract_features(net, "validation", shapes, precision="fp32")
    lab.extract_features(net, "test", shapes, precision="bf16")
    assert kept() == 3
    with torch.no_grad():
        net.stem[0].weight[0, 0, 0, 0] += 1
    lab.extract_features(net, "test", shapes, precision="fp32")
    assert kept() == 4


def test_damaged_features_are_extracted_again(net, shapes, store):
    features, _ = lab.extract_features(net, "test", shapes)
    (path,) = store.rglob("*.safetensors")
    contents = bytearray(path.read_bytes())
    contents[-3] ^= 8
    path.write_bytes(contents)
    assert torch.equal(lab.extract_features(net, "test", shapes)[0], features)
    load_tensors(path)  # whole again


def test_a_store_that_cannot_be_written_costs_no_features(net, shapes, store):
    store.write_text("no folder")
    with pytest.warns(UserWarning, match="features can't be kept"):
        features, _ = lab.extract_features(net, "test", shapes)
    assert torch.isfinite(features).all()


# Heads


@settings(max_examples=25, deadline=None)
@given(
    k=st.integers(1, 20),
    metric=st.sampled_from(transfer.METRICS),
    weighted=st.booleans(),
    seed=st.integers(0, 99),
)
def test_knn_agrees_with_scikit_learn(k, metric, weighted, seed):
    from sklearn.neighbors import KNeighborsClassifier

    train, test = blobs(120, 4, seed=seed), blobs(60, 4, seed=seed + 100)
    weights = (lambda distance: 1 / np.maximum(distance, 1e-6)) if weighted else "uniform"
    theirs = KNeighborsClassifier(k, weights=weights, metric=metric, algorithm="brute").fit(*map(np.asarray, train))
    votes = torch.as_tensor(theirs.predict_proba(test[0].numpy()))
    mine = transfer.NeighbourHead(train, k=k, metric=metric, weighted=weighted)(test[0]).double()
    assert torch.allclose(mine / mine.sum(dim=1, keepdim=True), votes, atol=1e-3)


@pytest.mark.parametrize("penalty", [0.001, 0.1, 1.0])
def test_the_svm_is_that_of_scikit_learns_linear_svc(penalty):
    from sklearn.svm import LinearSVC

    (features, labels), (others, _) = blobs(300, 5), blobs(100, 5, seed=1)
    mean, std = features.mean(dim=0), features.std(dim=0)
    theirs = LinearSVC(C=penalty, tol=1e-8, max_iter=100_000, dual=True, random_state=0)
    theirs.fit(((features - mean) / std).numpy(), labels.numpy())
    expected = torch.as_tensor(theirs.decision_function(((others - mean) / std).numpy())).float()
    found = transfer.svm_head((features, labels), C=penalty)(others)
    assert torch.allclose(found, expected, atol=2e-3 * expected.abs().max())


@pytest.mark.parametrize("penalty", [0.001, 0.1, 1.0])
def test_the_probe_is_scikit_learns_logistic_regression(penalty):
    from sklearn.linear_model import LogisticRegression

    (features, labels), (others, _) = blobs(300, 5), blobs(100, 5, seed=1)

    def with_bias(rows):
        rows = (rows - features.mean(dim=0)) / features.std(dim=0)
        return torch.cat([rows, torch.ones(len(rows), 1)], dim=1).numpy()

    theirs = LogisticRegression(C=penalty, fit_intercept=False, tol=1e-8, max_iter=10_000)
    theirs.fit(with_bias(features), labels.numpy())
    expected = torch.as_tensor(theirs.predict_proba(with_bias(others))).float()
    assert torch.allclose(transfer.probe_head((features, labels), C=penalty)(others).softmax(1), expected, atol=2e-3)


def test_all_methods_score_what_can_be_told_apart():
    train, test = blobs(400, 8), blobs(200, 8, seed=1)
    for method in (lab.knn, lab.linear_svm, lab.linear_probe):
        found = method(train, test)
        assert 0.6 < found["top1"] < found["top5"] <= 1
        guessed = method(train, (test[0], test[1].roll(1)))
        assert guessed["top1"] < 0.2


def test_the_penalty_is_the_one_that_validation_prefers():
    train, validation = blobs(200, 8), blobs(200, 8, seed=1)
    found = {penalty: lab.linear_svm(train, validation, C=penalty)["top1"] for penalty in (1e-9, 1e-2, 1e3)}
    assert transfer.best_penalty(transfer.svm_head, train, validation, tuple(found)) == max(found, key=found.get)


@pytest.mark.parametrize("method", [lab.knn, lab.linear_svm, lab.linear_probe])
def test_wrong_features_are_named(method):
    features, labels = blobs(40, 4)
    broken = features.clone()
    broken[7, 2] = math.nan
    with pytest.raises(lab.SettingError, match="features: 'not finite in row 7'"):
        method((broken, labels), (features, labels))
    with pytest.raises(lab.SettingError, match="features: 'not finite in row 7'"):
        method((features, labels), (broken, labels))
    with pytest.raises(lab.SettingError, match=r"features: \(40, 12\).*\(39, F\)"):
        method((features, labels[:-1]), (features, labels))
    without = labels != 3
    with pytest.raises(lab.SettingError, match="none of class 3"):
        method((features[without], labels[without]), (features, labels))


@pytest.mark.parametrize("method", [lab.linear_svm, lab.linear_probe])
def test_an_empty_class_between_others_is_named(method):
    features, labels = blobs(40, 4)
    kept = labels != 1
    with pytest.raises(lab.SettingError, match="none of class 1"):
        method((features[kept], labels[kept]), (features, labels))
    with pytest.raises(lab.SettingError, match="C: 0 was given"):
        method((features, labels), (features, labels), C=0)


def test_more_neighbours_than_features_are_named():
    features = blobs(40, 4)
    with pytest.raises(lab.SettingError, match=r"k: 41 .* from 1 to 40"):
        lab.knn(features, features, k=41)
    with pytest.raises(lab.SettingError, match="metric: 'taxi'"):
        lab.knn(features, features, metric="taxi")


# Unfreezing


@settings(max_examples=20, deadline=None)
@given(stages=st.integers(-1, 4), again=st.integers(-1, 4))
def test_only_the_last_stages_learn(stages, again):
    net = lab.unfreeze(lab.unfreeze(lab.ResNet([1, 1, 1, 1], width=2), again), stages)
    learning = {name.rpartition(".")[0] for name, weight in net.named_parameters() if weight.requires_grad}
    prefixes = ["head", *(f"stages.{number}" for number in range(4 - max(stages, 0), 4))]
    expected = {
        name
        for name, module in net.named_modules()
        if list(module.parameters(recurse=False)) and (stages == -1 or name.startswith(tuple(prefixes)))
    }
    assert learning == expected


@pytest.mark.parametrize("kind", ["resnet", "shallow"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_frozen_layers_keep_weights_and_statistics(shapes, kind, optimizer):
    torch.manual_seed(0)
    resnet = {"blocks": [1, 1, 1, 1], "width": 4, "zero_init_residual": False}
    sizes = resnet if kind == "resnet" else {"widths": [4, 4, 4]}
    net = lab.unfreeze(build_model(kind, image_shape=shapes.image_shape, classes=10, **sizes), 1)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    lab.fit(net, shapes, lab.Training(epochs=1, optimizer=optimizer, lr=0.01, augment="basic"), progress=False)
    changed = {name for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])}
    last = f"stages.{len(net.stages) - 1}." if kind == "resnet" else f"blocks.{len(net.stages) - 1}."
    assert changed == {name for name in before if name.startswith(("head.", last))}


def test_a_net_that_is_unfrozen_again_updates_its_statistics():
    net = lab.unfreeze(lab.unfreeze(lab.ResNet([1, 1, 1, 1], width=2), 1).train(), -1)
    assert all(module.training for module in net.modules())


def test_unfreezing_what_is_not_there_is_named(net):
    with pytest.raises(lab.SettingError, match=r"stages: 5 .* from -1 to 4"):
        lab.unfreeze(net, 5)
    with pytest.raises(lab.SettingError, match=r"stages: -2"):
        lab.unfreeze(net, -2)
    with pytest.raises(lab.SettingError, match="which have stages"):
        lab.unfreeze(lab.MLP(2, 8), 1)


def test_a_new_head_leaves_the_old_net_alone(net):
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    other = lab.transferred(net, 100)
    assert other.head.out_features == 100
    lab.unfreeze(other, -1)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_each_stage_learns_at_its_own_rate(net):
    from labutils.training import make_optimizer

    optimizer = make_optimizer(net, lab.Training(epochs=1, optimizer="sgd", lr=0.8, stage_lr=0.5))
    rates = {parameter: group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    parts = [net.head, *reversed(net.stages), net.stem]
    assert [{rates[parameter] for parameter in part.parameters()} for part in parts] == [
        {0.8}, {0.4}, {0.2}, {0.1}, {0.05}, {0.025},
    ]  # fmt: skip
    assert set(rates) == set(net.parameters())


def test_rates_by_stage_are_refused_where_there_are_none(digits):
    with pytest.raises(lab.SettingError, match=r"stage_lr: 0\.5 .* no stages"):
        lab.fit(lab.MLP(1, 8), digits, lab.Training(epochs=1, stage_lr=0.5), progress=False)
    with pytest.raises(lab.SettingError, match=r"stage_lr: 0\.5 .* with muon"):
        lab.Training(epochs=1, stage_lr=0.5, optimizer="muon")


# As an experiment


@pytest.fixture
def backbone(store, tmp_path, monkeypatch):
    """A small trained network in a folder of its own."""
    monkeypatch.setattr(backbones, "checkpoints_folder", lambda: tmp_path / "checkpoints")
    finished = lab.run(lab.Experiment.load("cnn_backbone", profile="smoke", epochs=8), progress=False)
    experiment = finished.experiment
    data = load_experiment_data(experiment)
    backbones.save_backbone("small", finished.model, data, settings=experiment.settings(), metrics=finished.metrics)
    return finished.model


def transfer_of(**changes):
    model = {"blocks": [1, 1, 1, 1], "width": 4, "zero_init_residual": False}
    settings = {"backbone": "small", "model": model, "source": "builtin", "limit": 600, "epochs": 3, **changes}
    return lab.Experiment.load("transfer_ladder", profile="smoke", **settings)


@pytest.mark.parametrize("method", ["knn", "svm", "probe"])
def test_a_head_for_frozen_features_is_a_run_like_any_other(backbone, method):
    experiment = transfer_of(name="cifar10", method=method, k=5)
    finished = lab.run(experiment, progress=False)
    data = load_experiment_data(experiment)
    again = lab.run(experiment, progress=False)
    assert again.path == finished.path
    assert again.trained is None  # loaded
    for run in (finished, again):
        assert lab.evaluate(run.model, "test", data)["top1"] == finished.metrics["test_top1"]
    same = [name for name in backbone.state_dict() if not name.startswith("head.")]
    assert all(torch.equal(again.model.state_dict()[name], backbone.state_dict()[name]) for name in same)
    assert finished.metrics["parameters"] == (0 if method == "knn" else 10 * (32 + 1))
    assert finished.metrics["test_top1"] > 0.2  # of 10 classes


def test_fine_tuning_changes_what_it_may_and_starts_from_the_backbone(backbone):
    finished = lab.run(transfer_of(stages=1), progress=False)
    same = [name for name in backbone.state_dict() if name.startswith(("stem.", "stages.0", "stages.1", "stages.2"))]
    assert all(torch.equal(finished.model.state_dict()[name], backbone.state_dict()[name]) for name in same)
    conv = "stages.3.0.conv1.weight"
    assert not torch.equal(finished.model.state_dict()[conv], backbone.state_dict()[conv])
    assert finished.model.head.out_features == 100


def test_progressive_fine_tuning_unfreezes_in_phases(backbone, monkeypatch):
    learning, seen = [], []
    fit = transfer.fit

    def watched(model, data, training, **options):
        learning.append((sum(parameter.requires_grad for parameter in model.parameters()), training.epochs))
        return fit(model, data, training, **options)

    monkeypatch.setattr(transfer, "fit", watched)
    experiment = transfer_of(stages=2, progressive=True, epochs=5)
    finished = lab.run(experiment, progress=False, on_epoch=lambda history: seen.append(len(history.rows)))
    counts, epochs = zip(*learning, strict=True)
    assert list(counts) == sorted(set(counts))
    assert counts[0] == 2
    assert counts[2] == len(list(finished.model.parameters()))
    assert epochs == (1, 2, 2)
    assert seen == [1, 2, 3, 4, 5]
    assert finished.history.frame["epoch"].tolist() == [1, 2, 3, 4, 5]
    assert finished.metrics["validation_top1"] == finished.history.frame["validation_accuracy"].max()


def test_a_progressive_fine_tuning_that_is_stopped_goes_on(backbone, one_thread):
    experiment = transfer_of(stages=2, progressive=True, epochs=6)
    whole = lab.run(experiment, progress=False)
    shutil.rmtree(whole.path)

    def stop(history):
        if len(history.rows) == 3:
            raise KeyboardInterrupt

    stopped = lab.run(experiment, progress=False, on_epoch=stop)
    assert stopped.history.interrupted
    assert len(stopped.history.rows) == 3
    resumed = lab.run(experiment, progress=False)
    assert resumed.history.frame.drop(columns="seconds").equals(whole.history.frame.drop(columns="seconds"))
    weights = zip(resumed.model.parameters(), whole.trained.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in weights)
    assert not list(resumed.path.parent.glob(".checkpoints/*"))


def test_a_run_is_named_by_the_weights_it_starts_from(backbone):
    experiment = transfer_of()
    before = experiment.hash("data")
    path = backbones.checkpoints_folder() / "small.safetensors"
    record = backbones.read_record("small")
    del record["sha256"]
    with torch.no_grad():
        backbone.head.bias[0] += 1
    save_tensors(path, backbone.state_dict(), record)
    assert experiment.hash("data") == before  # the record beside it still tells of the old weights ...
    with pytest.raises(lab.CheckpointError):
        lab.run(experiment, progress=False)  # ... and they are refused
    backbones.save_backbone(
        "small",
        backbone,
        load_experiment_data(lab.Experiment.load("cnn_backbone", profile="smoke")),
        settings=record["settings"],
        metrics=record["metrics"],
    )
    assert experiment.hash("data") != before


def test_a_transfer_from_nothing_is_a_training_from_scratch():
    experiment = lab.Experiment.load("transfer_ladder", profile="smoke", backbone=None, stages=-1, method="fine_tuning")
    assert "transfer" not in experiment.settings()
    assert "\ntransfer:" not in experiment.to_yaml()
    again = experiment.override(backbone="cnn_backbone", stages=1)
    assert again.settings()["transfer"]["stages"] == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model.width": 8}, r"model\.width: 8 .* 4, which small has"),
        ({"stages": 5}, r"stages: 5 .* from -1 to 4"),
        ({"backbone": "smal"}, "did you mean small"),
        ({"name": "mnist"}, "backbone: 'small' .* 1 channels, not 3"),
        ({"method": "svm", "validation": 0.0}, "C: None .* no validation split"),
        ({"stages": 1, "progressive": True, "epochs": 2}, "epochs: 2 .* from 3, one for each phase"),
        ({"method": "knn", "k": 10_000}, r"k: 10000 .* from 1 to"),
    ],
)
def test_transfers_that_cannot_be_are_named(backbone, store, changes, words):
    with pytest.raises(lab.SettingError, match=words):
        lab.run(transfer_of(**changes), progress=False)
    assert not [path for path in store.iterdir() if not path.name.startswith(".") and "transfer" in path.name]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"method": "magic"}, "method: 'magic'"),
        ({"backbone": None, "method": "knn"}, "backbone: None .* for knn"),
        ({"backbone": None, "stages": 1}, "backbone: None"),
        ({"stages": -2}, "stages: -2"),
        ({"k": 0}, "k: 0"),
        ({"C": -1.0}, "C: -1"),
    ],
)
def test_wrong_settings_of_a_transfer_are_named(settings, words):
    with pytest.raises(lab.SettingError, match=words):
        transfer.Transfer(**{"backbone": "cnn_backbone", **settings})


def test_gradients_of_what_takes_no_steps_are_refused(backbone):
    with pytest.raises(lab.SettingError, match=r"tracking\.gradients: True .* false for probe"):
        transfer_of(method="probe", gradients=True)


def test_all_stages_belong_to_cnns():
    for net in (lab.ResNet([1, 1, 1, 1], width=2), lab.ShallowCNN([2, 2, 2])):
        assert isinstance(net, CNN)
        assert net.stages is not None
