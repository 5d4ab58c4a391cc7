"""The distillation loss against a second computation and its limits, teachers, and distillation as an experiment."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812

import labutils as lab
from labutils.experiments import running
from labutils.experiments.running import load_experiment_data
from labutils.methods.distillation import (
    Distillation,
    Teacher,
    cached_answer,
    consistent_answer,
    load_teacher,
    shuffle_wrong_classes,
)
from labutils.training import Callback


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
        Distillation(teacher="anyone", **arguments)


def test_logits_of_other_classes_are_named():
    student, teacher, labels = drawn(0)
    with pytest.raises(lab.SettingError, match=r"teacher_logits: \(6, 4\).*\(6, 5\)"):
        lab.distillation_loss(student, teacher[:, :4], labels, temperature=2.0, alpha=0.5)


@pytest.mark.parametrize("wrong", [5, -1, -100])
def test_labels_beyond_the_classes_are_named(wrong):
    student, teacher, labels = drawn(0)
    labels[2] = wrong
    with pytest.raises(lab.SettingError, match=rf"labels: .*{wrong}.* allowed: 0 to 4, of 5 classes"):
        lab.distillation_loss(student, teacher, labels, temperature=2.0, alpha=0.5)


# Teachers


def test_shuffled_answers_keep_the_labels_logit_and_all_values_but_not_the_order():
    _, logits, labels = drawn(0)
    shuffled = shuffle_wrong_classes(logits, labels, seed=1)
    assert torch.equal(shuffled.gather(1, labels[:, None]), logits.gather(1, labels[:, None]))
    assert torch.equal(shuffled.sort(dim=1).values, logits.sort(dim=1).values)
    assert not torch.equal(shuffled, logits)
    assert torch.equal(shuffled, shuffle_wrong_classes(logits, labels, seed=1))
    places = torch.stack([
        shuffle_wrong_classes(torch.arange(4.0)[None], torch.tensor([2]), seed=seed)[0] for seed in range(60)
    ])  # fmt: skip
    assert (places[:, 2] == 2).all()
    assert all(set(places[:, column].tolist()) == {0, 1, 3} for column in (0, 1, 3))


def test_a_shuffled_teacher_says_other_things_of_the_wrong_classes(network, shapes):
    plain, mixed = (cached_answer(network, shapes, shuffle_seed=seed) for seed in (None, 3))
    indices = torch.arange(len(shapes.train))
    expected = shuffle_wrong_classes(plain(None, indices), shapes.train.labels, seed=3)
    assert torch.equal(mixed(None, indices), expected)
    with pytest.raises(lab.SettingError, match="shuffled: True"):
        Distillation(teacher="anyone", shuffled=True, consistent=True)


TAUGHT = Distillation(teacher="anyone")


@pytest.fixture
def network():
    torch.manual_seed(0)
    return lab.ResNet([1, 1, 1, 1], width=4, zero_init_residual=False).eval()


def seen_by(teacher, shapes, **training):
    """What a student's loss is given in one epoch: the student's images, and the teacher's logits."""
    images, logits = [], []

    class Watch(Callback):
        def after_step(self, state):
            images.append(state.images)
            logits.append(teacher.logits)

    student = lab.ResNet([1, 1, 1, 1], width=1)
    training = lab.Training(epochs=1, batch_size=50, precision="fp32", **training)
    lab.fit(student, shapes, training, loss=teacher.loss, callbacks=[teacher, Watch()], progress=False)
    return torch.cat(images), torch.cat(logits)


def test_a_cached_teacher_answers_for_the_images_of_the_batch(network, shapes):
    images, logits = seen_by(Teacher(cached_answer(network, shapes, precision="fp32"), TAUGHT), shapes)
    with torch.no_grad():
        assert torch.allclose(network(images), logits, atol=1e-4)
    expected, _ = lab.predict(network, "train", shapes, precision="fp32")
    assert not torch.allclose(logits, expected)  # the batches are in another order
    assert torch.allclose(logits.sort(dim=0).values, expected.sort(dim=0).values, atol=1e-4)


def test_a_consistent_teacher_sees_what_the_student_sees(network, shapes):
    teacher = Teacher(consistent_answer(network, shapes, precision="fp32"), TAUGHT)
    images, logits = seen_by(teacher, shapes, augment="basic")
    with torch.no_grad():
        assert torch.allclose(network(images), logits, atol=1e-4)
    assert not logits.requires_grad
    cached = Teacher(cached_answer(network, shapes, precision="fp32"), TAUGHT)
    _, as_they_are = seen_by(cached, shapes, augment="basic")
    assert not torch.allclose(logits, as_they_are, atol=1e-2)


def test_the_loss_is_that_of_the_batch_the_teacher_has_just_seen(network, shapes):
    settings = Distillation(teacher="anyone", temperature=3.0, alpha=0.4)
    teacher, losses = Teacher(cached_answer(network, shapes, precision="fp32"), settings), []

    class Watch(Callback):
        def before_step(self, state):
            with torch.no_grad():
                student = state.model(state.images)
                taught = network(state.images)
            labels = shapes.train.labels[state.indices]
            self.expected = lab.distillation_loss(student, taught, labels, temperature=3.0, alpha=0.4)

        def after_step(self, state):
            losses.append((state.loss.item(), self.expected.item()))

    training = lab.Training(epochs=1, batch_size=90, precision="fp32")
    student = lab.MLP(1, 4, in_features=3072)
    lab.fit(student, shapes, training, loss=teacher.loss, callbacks=[teacher, Watch()], progress=False)
    found, expected = zip(*losses, strict=True)
    assert found == pytest.approx(expected, rel=1e-3)


def test_kept_answers_are_looked_up_and_those_of_another_teacher_are_not(network, shapes, tmp_path):
    def answers():
        indices = torch.arange(len(shapes.train))
        return cached_answer(network, shapes, precision="fp32", cache=tmp_path)(shapes.train.images, indices)

    first = answers()
    assert torch.equal(answers(), first)
    assert len(list(tmp_path.iterdir())) == 1
    with torch.no_grad():
        network.head.bias[0] += 1
    assert torch.allclose(answers()[:, 0], first[:, 0] + 1, atol=1e-5)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_teacher_that_does_not_know_is_refused(network, shapes):
    torch.nn.init.constant_(network.head.bias, math.nan)
    with pytest.raises(lab.SettingError, match="teacher_logits: 'not finite in row 0'"):
        cached_answer(network, shapes)


# As an experiment


def student_of(**changes):
    data = {"name": "cifar10", "limit": 300, "validation": 0.1}
    settings = {"width": 2, "teacher": "small", "epochs": 2, "gradients": False, **data, **changes}
    return lab.Experiment.load("cnn_depth", profile="smoke", **settings)


@pytest.mark.parametrize("consistent", [False, True])
def test_a_distillation_is_a_run_like_any_other(backbone, consistent, monkeypatch):
    experiment = student_of(consistent=consistent, alpha=1.0)
    finished = lab.run(experiment, progress=False)
    alone = lab.run(experiment.override(teacher=None), progress=False)
    monkeypatch.setattr(running, "train", lambda *_, **__: pytest.fail("trained again"))
    again = lab.run(experiment, progress=False)
    assert again.path == finished.path
    assert again.experiment.distillation == experiment.distillation
    assert alone.path != finished.path
    assert "distillation" not in alone.experiment.settings()
    assert alone.history.frame["train_loss"].tolist() != finished.history.frame["train_loss"].tolist()


def test_labels_do_not_count_at_alpha_1(backbone, one_thread):
    data = load_experiment_data(student_of())
    shuffled = replace(data, train=lab.Split(data.train.images, data.train.labels.roll(1)))
    losses = []
    for seen in (data, shuffled):
        torch.manual_seed(0)
        student = lab.ResNet([1, 1, 1, 1], width=2)
        training = lab.Training(epochs=1)
        teacher = load_teacher(Distillation(teacher="small", alpha=1.0), seen, training)
        history = lab.fit(student, seen, training, loss=teacher.loss, callbacks=[teacher], progress=False)
        losses.append(history.frame["train_loss"][0])
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"teacher": "smal"}, "did you mean small"),
        ({"name": "mnist"}, "teacher: 'small' .* a network for"),
        ({"label_smoothing": 0.1}, r"label_smoothing: 0\.1 .* 0 beside a teacher"),
    ],
)
def test_distillations_that_cannot_be_are_named(backbone, changes, words):
    with pytest.raises(lab.SettingError, match=words):
        lab.run(student_of(**changes), progress=False)


def test_one_starts_from_a_network_or_learns_from_it(backbone):
    with pytest.raises(lab.SettingError, match=r"distillation\.teacher: 'small' .* null beside"):
        student_of(backbone="small")
