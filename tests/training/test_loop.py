import copy
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

import labutils as lab
from labutils.training import Callback, loop


class Act(Callback):
    """Does what it is given at the moments it is given for."""

    def __init__(self, **moments):
        vars(self).update(moments)


def trained(data, training, depth=2, width=16, normalization=None, **options):
    torch.manual_seed(0)
    model = lab.MLP(depth, width, normalization=normalization)
    return model, lab.fit(model, data, training, progress=False, **options)


def test_it_learns(digits):
    model, history = trained(digits, lab.Training(epochs=8, lr=3e-3), width=64)
    frame = history.frame
    assert list(frame.columns) == [
        "epoch", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy", "lr", "seconds",
    ]  # fmt: skip
    assert frame["epoch"].tolist() == list(range(1, 9))
    assert frame["train_loss"].iloc[-1] < frame["train_loss"].iloc[0] / 3
    assert lab.evaluate(model, "test", digits)["top1"] > 0.85


@pytest.mark.parametrize("augment", [None, "basic"])
def test_the_same_seed_gives_the_same_history_to_the_bit(few, one_thread, augment):
    def run(seed, elsewhere):
        torch.manual_seed(0)
        model = lab.MLP(2, 16, dropout=0.2)
        torch.manual_seed(elsewhere)  # dropout must not depend on what was drawn before
        training = lab.Training(epochs=2, augment=augment, seed=seed)
        return model, lab.fit(model, few, training, progress=False).frame.drop(columns="seconds")

    (first_model, first), (second_model, second), (_, other) = run(1, 7), run(1, 8), run(2, 7)
    assert first.equals(second)
    assert all(torch.equal(a, b) for a, b in zip(first_model.parameters(), second_model.parameters(), strict=True))
    assert not first.equals(other)


def reference(data, training, make_optimizer):
    """The same training, written out the long way."""
    torch.manual_seed(0)
    model = lab.MLP(2, 16)
    optimizer = make_optimizer(model.parameters())
    order = torch.Generator().manual_seed(training.seed)
    for _ in range(training.epochs):
        for images, labels in lab.batches(data.train, data, training.batch_size, generator=order):
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels, label_smoothing=training.label_smoothing).backward()
            optimizer.step()
    return model


@pytest.mark.parametrize(
    ("settings", "optimizer"),
    [
        ({"optimizer": "adam", "weight_decay": 0.1}, lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1)),
        ({"optimizer": "adamw", "weight_decay": 0.1}, lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1)),
        ({"optimizer": "sgd", "momentum": 0.0}, lambda p: torch.optim.SGD(p, lr=0.01)),
        ({"optimizer": "sgd"}, lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9)),
        ({"label_smoothing": 0.2}, lambda p: torch.optim.Adam(p, lr=0.01)),
    ],
)
def test_each_optimizer_takes_the_textbook_steps(few, settings, optimizer):
    data = replace(few, validation=None)
    training = lab.Training(epochs=2, batch_size=50, lr=0.01, **settings)
    model, _ = trained(data, training)
    expected = reference(data, training, optimizer)
    for given_, wanted in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.allclose(given_, wanted, atol=1e-4)


def test_the_best_epochs_weights_are_loaded(few, monkeypatch):
    accuracies, states = iter([0.5, 0.9, 0.9, 0.4]), []

    def measured(state):
        states.append(copy.deepcopy(state.validated.state_dict()))
        return {"validation_loss": 1.0 - len(states) / 100, "validation_accuracy": next(accuracies)}

    monkeypatch.setattr(loop, "validation_figures", measured)
    model, history = trained(few, lab.Training(epochs=4))
    assert history.best_epoch == 3  # as accurate as the second, with a lower loss
    assert all(torch.equal(model.state_dict()[name], states[2][name]) for name in states[2])


def test_a_loss_that_is_not_finite_stops_with_epoch_and_step(digits):
    calls = []

    def loss(logits, labels):
        calls.append(1)
        scale = float("nan") if len(calls) == 14 else 1.0
        return F.cross_entropy(logits, labels) * scale

    with pytest.raises(lab.Diverged, match=r"nan in epoch 2, step 5.*learning rate") as caught:
        trained(digits, lab.Training(epochs=3), loss=loss)
    assert len(caught.value.history.frame) == 1


def test_without_validation_the_last_epoch_counts(few):
    data = replace(few, validation=None)
    _, history = trained(data, lab.Training(epochs=2, scheduler="plateau"))
    assert history.frame["validation_loss"].isna().all()
    assert history.best_epoch == 2
    with pytest.raises(lab.SettingError, match="validation=0"):
        lab.evaluate(lab.MLP(1, 8), "validation", data)


def test_patience_without_validation_is_refused(few):
    with pytest.raises(lab.SettingError, match=r"patience: 2 .* without a validation split"):
        trained(replace(few, validation=None), lab.Training(epochs=2, patience=2))


def test_gradients_of_before_are_forgotten(few, one_thread):
    losses = []
    for stale in (False, True):
        torch.manual_seed(0)
        model = lab.MLP(1, 8)
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 9.0) if stale else None
        losses.append(lab.fit(model, few, lab.Training(epochs=1), progress=False).frame["train_loss"].item())
    assert losses[0] == losses[1]


def test_training_in_bf16_works(digits):
    _, history = trained(digits, lab.Training(epochs=2, precision="bf16"))
    assert history.frame["train_loss"].is_monotonic_decreasing


def test_a_model_of_other_classes_is_named(few):
    with pytest.raises(lab.SettingError, match="classes: 7 was given; allowed: 10"):
        lab.fit(lab.MLP(1, 8, classes=7), few, lab.Training(epochs=1), progress=False)


def test_whitening_an_mlp_is_refused(few):
    with pytest.raises(lab.SettingError, match="whitening: MLP"):
        lab.fit(lab.MLP(1, 8), few, lab.Training(epochs=1, whitening=True), progress=False)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lab.MLP(1, 4, in_features=3072), r"in_features: 3072 .* 784, the numbers in an image of scikit"),
        (lab.ResNet((1, 1, 1, 1), width=1), r"in_channels: 3 .* 1, the channels of scikit"),
    ],
    ids=["mlp", "resnet"],
)
def test_a_model_of_other_images_is_named(few, model, words):
    with pytest.raises(lab.SettingError, match=words):
        lab.fit(model, few, lab.Training(epochs=1), progress=False)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"model": lab.MLP}, r"model: .*MLP.* a network, such as lab.MLP\(2, 64\)"),
        ({"model": lab.MLP(1, 4).requires_grad_(False)}, "model: .* with weights that learn"),
        ({"data": "mnist"}, "data: 'mnist' .* as load_data gives it"),
        ({"training": 3}, r"training: 3 .* lab.Training\(epochs=3\)"),
        (
            {"training": lab.Training(epochs=1, label_smoothing=0.1), "loss": F.cross_entropy},
            "label_smoothing: 0.1 .* 0 beside a loss of one's own",
        ),
    ],
)
def test_wrong_arguments_are_named(few, arguments, words):
    right = {"model": lab.MLP(1, 4), "data": few, "training": lab.Training(epochs=1)}
    with pytest.raises(lab.SettingError, match=words):
        lab.fit(**right | arguments, progress=False)


@pytest.mark.parametrize("batch_size", [1, 53])
def test_a_batch_of_one_image_is_refused_where_it_is_to_be_normalised(few, batch_size):
    training = lab.Training(epochs=1, batch_size=batch_size)  # 160 images are three batches of 53, and one
    with pytest.raises(lab.SettingError, match=f"batch_size: {batch_size} .* no batch of the 160 holds one alone"):
        trained(few, training, normalization="batch")


def test_the_training_loss_is_the_mean_over_images(few):
    """The last batch of 160 holds 10 images: it counts a fifth of what the others do."""
    sums, means = [], []

    def note(state):
        sums.append(state.loss.item() * len(state.images))
        means.append(state.loss.item())

    training = lab.Training(epochs=1, batch_size=50, optimizer="sgd", lr=0.5)
    _, history = trained(few, training, callbacks=[Act(after_step=note)])
    assert history.frame["train_loss"][0] == pytest.approx(sum(sums) / 160, rel=1e-6)
    assert abs(sum(means) / 4 - sum(sums) / 160) > 1e-3  # which the test could not tell apart otherwise


@pytest.mark.parametrize(
    "settings",
    [
        {"augment": "strong"},
        {"averaging": 0.9, "scheduler": "onecycle", "optimizer": "muon"},
        {"whitening": True, "augment": "slight"},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_fit_leaves_the_global_random_state_alone(shapes, settings, tmp_path):
    model, before = lab.ResNet((1, 1, 1, 1), width=1), torch.get_rng_state()
    checkpoint = tmp_path / "checkpoint"
    lab.fit(model, shapes, lab.Training(epochs=1, batch_size=32, **settings), checkpoint=checkpoint, progress=False)
    assert torch.equal(torch.get_rng_state(), before)
    lab.fit(
        model, shapes, lab.Training(epochs=1, batch_size=32, **settings), checkpoint=checkpoint, progress=False
    )  # loaded
    assert torch.equal(torch.get_rng_state(), before)


# Interrupts


def interrupt_after(epochs):
    """Interrupts after so many epochs, such as 1.5."""

    def interrupt(state):
        if state.epochs >= epochs:
            raise KeyboardInterrupt

    return Act(after_step=interrupt)


@pytest.mark.parametrize("when", [1.5, 2.3, 3.0])
def test_an_interrupt_goes_on_with_the_history_and_leaves_the_best_weights(few, when):
    ended = []
    torch.manual_seed(0)
    model = lab.MLP(2, 16)
    callbacks = [interrupt_after(when), Act(after_training=ended.append)]
    with pytest.raises(lab.Interrupted) as caught:
        lab.fit(model, few, lab.Training(epochs=50, batch_size=16), callbacks=callbacks, progress=False)
    history = caught.value.history
    assert isinstance(caught.value, KeyboardInterrupt)
    assert history.interrupted
    assert len(history.rows) == (when - 0.01) // 1
    assert len(ended) == 1
    assert lab.evaluate(model, "validation", few)["top1"] == history.frame["validation_accuracy"].max()


def test_an_interrupt_before_the_first_epoch_has_ended_leaves_the_initial_weights(few):
    model = lab.MLP(2, 16)
    initial = copy.deepcopy(model.state_dict())
    with pytest.raises(lab.Interrupted) as caught:
        lab.fit(model, few, lab.Training(epochs=5), callbacks=[interrupt_after(0.5)], progress=False)
    assert caught.value.history.rows == []
    assert caught.value.history.best_epoch == 0
    assert all(torch.equal(initial[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_error_of_a_loss_ends_it_with_the_best_weights(few, error):
    calls = []

    def loss(logits, labels):
        calls.append(1)
        if len(calls) == 15:  # ten steps an epoch: in the second
            raise error
        return F.cross_entropy(logits, labels)

    first, _ = trained(few, lab.Training(epochs=1, batch_size=16))
    torch.manual_seed(0)
    model = lab.MLP(2, 16)
    with pytest.raises(error):
        lab.fit(model, few, lab.Training(epochs=5, batch_size=16), loss=loss, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), first.parameters(), strict=True))
