"""The distillation loss against a second computation and its limits, teachers, and distillation as an experiment."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812

import labutils as lab
from labutils import backbones, distillation
from labutils.checkpoints import load_tensors, save_tensors
from labutils.runs import load_experiment_data
from labutils.sweeps import plan


def drawn(seed, rows=6, classes=5, scale=3.0):
    random = torch.Generator().manual_seed(seed)
    student, teacher = (scale * torch.randn(rows, classes, generator=random) for _ in range(2))
    return student, teacher, torch.randint(classes, (rows,), generator=random)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 999), temperature=st.floats(0.5, 20), alpha=st.floats(0, 1))
def test_the_loss_is_what_its_formula_says(seed, temperature, alpha):
    """Written out in NumPy: probabilities first, then sums over rows."""
    student, teacher, labels = drawn(seed)

    def softened(logits, by):
        powers = np.exp(logits.double().numpy() / by)
        return powers / powers.sum(axis=1, keepdims=True)

    p, q = softened(teacher, temperature), softened(student, temperature)
    divergence = (p * np.log(p / q)).sum(axis=1).mean()
    hard = -np.log(softened(student, 1)[np.arange(len(labels)), labels.numpy()]).mean()
    expected = (1 - alpha) * hard + alpha * temperature**2 * divergence
    found = lab.distillation_loss(student, teacher, labels, temperature=temperature, alpha=alpha).item()
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_alpha_0_is_the_cross_entropy_and_alpha_1_knows_no_labels():
    student, teacher, labels = drawn(0)
    alone = lab.distillation_loss(student, teacher, labels, temperature=3.0, alpha=0.0)
    assert alone.item() == pytest.approx(F.cross_entropy(student, labels).item())
    taught = [
        lab.distillation_loss(student, teacher, given, temperature=3.0, alpha=1.0) for given in (labels, labels.roll(1))
    ]
    assert taught[0].item() == taught[1].item()
    assert lab.distillation_loss(teacher, teacher, labels, temperature=3.0, alpha=1.0).item() == pytest.approx(
        0, abs=1e-6
    )


def test_towards_high_temperatures_centred_logits_are_matched():
    student, teacher, labels = drawn(1)
    centred = [logits - logits.mean(dim=1, keepdim=True) for logits in (student, teacher)]
    limit = (centred[0] - centred[1]).square().mean(dim=1).mean() / 2
    found = lab.distillation_loss(student, teacher, labels, temperature=300.0, alpha=1.0)
    assert found.item() == pytest.approx(limit.item(), rel=0.02)


def test_the_gradient_keeps_its_size_at_every_temperature():
    student, teacher, labels = drawn(2, scale=1.0)
    student.requires_grad_()
    norms = []
    for temperature in (4.0, 8.0, 16.0):
        loss = lab.distillation_loss(student, teacher, labels, temperature=temperature, alpha=1.0)
        norms.append(torch.autograd.grad(loss, student)[0].norm().item())
    assert max(norms) < 1.2 * min(norms)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"temperature": 0}, "temperature: 0"),
        ({"temperature": -1.0}, "temperature: -1"),
        ({"temperature": math.nan}, "temperature: nan"),
        ({"alpha": 1.5}, r"alpha: 1\.5"),
        ({"alpha": -0.1}, r"alpha: -0\.1"),
    ],
)
def test_wrong_settings_are_named(changes, word):
    arguments = {"temperature": 2.0, "alpha": 0.5} | changes
    with pytest.raises(lab.SettingError, match=word):
        lab.distillation_loss(*drawn(0), **arguments)
    with pytest.raises(lab.SettingError, match=word):
        lab.Distillation(teacher="anyone", **arguments)


def test_wrong_logits_are_named():
    student, teacher, labels = drawn(0)
    with pytest.raises(lab.SettingError, match=r"teacher_logits: \(6, 4\).*\(6, 5\)"):
        lab.distillation_loss(student, teacher[:, :4], labels, temperature=2.0, alpha=0.5)
    teacher[3, 1] = math.inf
    with pytest.raises(lab.SettingError, match="teacher_logits: 'not finite in row 3'"):
        lab.distillation_loss(student, teacher, labels, temperature=2.0, alpha=0.5)


# Teachers


@pytest.fixture
def shapes(store):
    return lab.load_data("cifar10", source="builtin", limit=300, device="cpu")


@pytest.fixture
def network():
    torch.manual_seed(0)
    return lab.ResNet([1, 1, 1, 1], width=4, zero_init_residual=False).eval()


def seen_by(teacher, shapes, **training):
    """What a student's loss is given in one epoch: the student's images, and the teacher's logits."""
    images, logits = [], []

    def watching(batch, places):
        images.append(batch)
        logits.append(teacher(batch, places))
        return logits[-1]

    def loss(student, labels, taught):
        assert taught is logits[-1]
        return F.cross_entropy(student, labels)

    student = lab.ResNet([1, 1, 1, 1], width=2)
    training = lab.Training(epochs=1, batch_size=50, precision="fp32", **training)
    lab.fit(student, shapes, training, loss=loss, teacher=watching, progress=False)
    return torch.cat(images), torch.cat(logits)


def test_a_cached_teacher_answers_for_the_images_of_the_batch(network, shapes):
    images, logits = seen_by(distillation.cached_teacher(network, shapes, precision="fp32"), shapes)
    with torch.no_grad():
        assert torch.allclose(network(images), logits, atol=1e-4)
    expected, _ = lab.predict(network, "train", shapes, precision="fp32")
    assert not torch.allclose(logits, expected)  # the batches are in another order
    assert torch.allclose(logits.sort(dim=0).values, expected.sort(dim=0).values, atol=1e-4)


def test_a_consistent_teacher_sees_what_the_student_sees(network, shapes):
    teacher = distillation.consistent_teacher(network, shapes, precision="fp32")
    images, logits = seen_by(teacher, shapes, augment="basic")
    with torch.no_grad():
        assert torch.allclose(network(images), logits, atol=1e-4)
    assert not logits.requires_grad
    cached = distillation.cached_teacher(network, shapes, precision="fp32")
    _, as_they_are = seen_by(cached, shapes, augment="basic")
    assert not torch.allclose(logits, as_they_are, atol=1e-2)


def test_kept_answers_of_another_teacher_or_order_are_refused(network, shapes, store):
    distillation.cached_teacher(network, shapes)
    (path,) = store.rglob("*.safetensors")
    tensors, record = load_tensors(path)
    for name in ("weights", "images"):
        save_tensors(path, tensors, record | {name: "0" * 64})
        with pytest.raises(lab.CheckpointError, match=f"logits of other {name}"):
            distillation.cached_teacher(network, shapes)


def test_a_teacher_that_does_not_know_is_refused(network, shapes):
    torch.nn.init.constant_(network.head.bias, math.nan)
    with pytest.raises(lab.SettingError, match="teacher_logits: 'not finite in row 0'"):
        distillation.cached_teacher(network, shapes)


# As an experiment


@pytest.fixture
def teacher(store, tmp_path, monkeypatch):
    """A small trained network in a folder of its own."""
    monkeypatch.setattr(backbones, "checkpoints_folder", lambda: tmp_path / "checkpoints")
    finished = lab.run(lab.Experiment.load("cnn_backbone", profile="smoke", epochs=4), progress=False)
    experiment = finished.experiment
    backbones.save_backbone(
        "small",
        finished.model,
        load_experiment_data(experiment),
        settings=experiment.settings(),
        metrics=finished.metrics,
    )
    return finished


def student_of(**changes):
    changes = {"width": 2, "teacher": "small", "epochs": 2, "whitening": False, "name": "cifar10", **changes}
    return lab.Experiment.load("cnn_depth", profile="smoke", gradients=False, **changes)


@pytest.mark.parametrize("consistent", [False, True])
def test_a_distillation_is_a_run_like_any_other(teacher, consistent):
    experiment = student_of(consistent=consistent, alpha=1.0)
    finished = lab.run(experiment, progress=False)
    again = lab.run(experiment, progress=False)
    assert again.path == finished.path
    assert again.trained is None  # loaded
    assert again.experiment.distillation == experiment.distillation
    alone = lab.run(experiment.override(teacher=None), progress=False)
    assert alone.path != finished.path
    assert "distillation" not in alone.experiment.settings()
    assert alone.history.frame["train_loss"].tolist() != finished.history.frame["train_loss"].tolist()


def test_labels_do_not_count_at_alpha_1(teacher, one_thread):
    data = load_experiment_data(student_of())
    shuffled = lab.ImageData(**{**vars(data), "train": lab.Split(data.train.images, data.train.labels.roll(1))})
    losses = []
    for seen in (data, shuffled):
        torch.manual_seed(0)
        student = lab.ResNet([1, 1, 1, 1], width=2)
        training = lab.Training(epochs=1)
        taught = distillation.teaching(lab.Distillation(teacher="small", alpha=1.0), seen, training)
        losses.append(lab.fit(student, seen, training, progress=False, **taught).frame["train_loss"][0])
    assert losses[0] == losses[1]


def test_distillations_are_never_stacked(teacher):
    experiments = [
        lab.Experiment.load("mlp_mnist", profile="smoke", teacher=name, seed=seed)
        for name in (None, "small")
        for seed in (0, 1)
    ]
    tasks = plan({str(number): experiment for number, experiment in enumerate(experiments)}, 1)
    assert sorted(map(sorted, tasks)) == [["0", "1"], ["2"], ["3"]]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"teacher": "smal"}, "did you mean small"),
        ({"name": "cifar100"}, "teacher: 'small' .* a network for"),
        ({"label_smoothing": 0.1}, r"label_smoothing: 0\.1 .* 0 beside a teacher"),
    ],
)
def test_distillations_that_cannot_be_are_named(teacher, changes, words):
    with pytest.raises(lab.SettingError, match=words):
        lab.run(student_of(**changes), progress=False)


def test_one_starts_from_a_network_or_learns_from_it(teacher):
    with pytest.raises(lab.SettingError, match=r"distillation\.teacher: 'small' .* null beside"):
        student_of(backbone="small")
