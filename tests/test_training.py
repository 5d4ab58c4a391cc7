import copy
import math
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F  # noqa: N812

import labutils as lab
from labutils import training as training_module
from labutils.data import batches
from labutils.stopping import stoppable
from labutils.training import autocast, has_native_bf16

CPU = torch.device("cpu")


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
def test_the_same_seed_gives_the_same_history_to_the_bit(digits, one_thread, augment):
    def run(seed, elsewhere):
        torch.manual_seed(0)
        model = lab.MLP(2, 16, dropout=0.2)
        torch.manual_seed(elsewhere)  # dropout must not depend on what was drawn before
        training = lab.Training(epochs=2, augment=augment, seed=seed)
        return model, lab.fit(model, digits, training, progress=False).frame.drop(columns="seconds")

    (first_model, first), (second_model, second), (_, other) = run(1, 7), run(1, 8), run(2, 7)
    assert first.equals(second)
    assert all(torch.equal(a, b) for a, b in zip(first_model.parameters(), second_model.parameters(), strict=True))
    assert not first.equals(other)


def test_fit_leaves_the_global_random_state_alone(digits):
    torch.manual_seed(5)
    model = lab.MLP(1, 8)
    expected = torch.get_rng_state()
    lab.fit(model, digits, lab.Training(epochs=1), progress=False)
    assert torch.equal(torch.get_rng_state(), expected)


def reference(data, training, make_optimizer, steps_lr=None):
    """The same training, written out the long way."""
    torch.manual_seed(0)
    model = lab.MLP(2, 16)
    optimizer = make_optimizer(model.parameters())
    order, step = torch.Generator().manual_seed(training.seed), 0
    for _ in range(training.epochs):
        for images, labels in batches(data.train, data, training.batch_size, generator=order):
            if steps_lr:
                optimizer.param_groups[0]["lr"] = steps_lr(step)
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels, label_smoothing=training.label_smoothing).backward()
            optimizer.step()
            step += 1
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
def test_each_optimizer_takes_the_textbook_steps(settings, optimizer):
    data = lab.load_data("mnist", source="builtin", validation=0, device="cpu")
    training = lab.Training(epochs=2, lr=0.01, **settings)
    model, _ = trained(data, training)
    expected = reference(data, training, optimizer)
    for given_, wanted in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.allclose(given_, wanted, atol=1e-4)


def test_cosine_lowers_the_rate_epoch_by_epoch(digits):
    _, history = trained(digits, lab.Training(epochs=4, lr=0.1, optimizer="sgd", scheduler="cosine"))
    expected = [0.1 * (1 + math.cos(math.pi * epoch / 4)) / 2 for epoch in range(4)]
    assert history.frame["lr"].tolist() == pytest.approx(expected)


def test_plateau_halves_the_rate_after_more_than_two_bad_epochs(digits, monkeypatch):
    losses = iter([1.0, 2.0, 2.0, 2.0, 2.0, 2.0])
    measured = lambda *_: {"validation_loss": next(losses), "validation_accuracy": 0.5}  # noqa: E731
    monkeypatch.setattr(training_module, "validate", measured)
    _, history = trained(digits, lab.Training(epochs=6, lr=0.01, scheduler="plateau"))
    assert history.frame["lr"].tolist() == pytest.approx([0.01] * 4 + [0.005] * 2)


def test_onecycle_rises_to_the_rate_and_falls(digits):
    _, history = trained(digits, lab.Training(epochs=10, lr=0.01, scheduler="onecycle"))
    rates = history.frame["lr"].tolist()
    assert max(rates) == pytest.approx(0.01, rel=0.05)
    assert rates.index(max(rates)) == 0  # the first epoch is the tenth in which it rises
    assert rates[-1] < 1e-5


def test_triangular_falls_along_a_line(digits):
    _, history = trained(digits, lab.Training(epochs=10, lr=0.01, scheduler="triangular"))
    rates = history.frame["lr"].tolist()
    assert rates[0] == pytest.approx(0.01, rel=0.05)
    assert rates == pytest.approx([0.01 * (10 - epoch) / 9 for epoch in range(1, 11)], abs=0.01 * 0.05)


def test_the_best_epochs_weights_are_loaded(digits, monkeypatch):
    accuracies, states = iter([0.5, 0.9, 0.9, 0.4]), []

    def measured(model, *_):
        states.append(copy.deepcopy(model.state_dict()))
        return {"validation_loss": 1.0 - len(states) / 100, "validation_accuracy": next(accuracies)}

    monkeypatch.setattr(training_module, "validate", measured)
    model, history = trained(digits, lab.Training(epochs=4))
    assert history.best_epoch == 3  # as accurate as the second, with a lower loss
    assert all(torch.equal(model.state_dict()[name], states[2][name]) for name in states[2])


def test_patience_stops_early(digits, monkeypatch):
    accuracies = iter([0.5, 0.6, 0.6, 0.5, 0.9])
    measured = lambda *_: {"validation_loss": 1.0, "validation_accuracy": next(accuracies)}  # noqa: E731
    monkeypatch.setattr(training_module, "validate", measured)
    _, history = trained(digits, lab.Training(epochs=5, patience=2))
    assert history.stopped_early
    assert len(history.frame) == 4
    assert history.best_epoch == 2


def test_an_interrupt_keeps_history_and_best_weights(digits):
    def stop(history):
        if len(history.rows) == 2:
            raise KeyboardInterrupt

    model, history = trained(digits, lab.Training(epochs=50), on_epoch=stop)
    assert history.interrupted
    assert len(history.frame) == 2
    found = lab.evaluate(model, "validation", digits)["top1"]
    assert found == history.frame["validation_accuracy"].max()


def test_an_interrupt_in_mid_epoch_falls_back_to_the_best_weights(digits):
    calls = []

    def loss(logits, labels):
        calls.append(1)
        if len(calls) == 12:  # nine steps an epoch: in the second
            raise KeyboardInterrupt
        return F.cross_entropy(logits, labels)

    model, history = trained(digits, lab.Training(epochs=5), loss=loss)
    assert len(history.frame) == 1
    assert lab.evaluate(model, "validation", digits)["top1"] == history.frame["validation_accuracy"][0]


def test_a_loss_that_is_not_finite_stops_with_epoch_and_step(digits):
    calls = []

    def loss(logits, labels):
        calls.append(1)
        scale = float("nan") if len(calls) == 14 else 1.0
        return F.cross_entropy(logits, labels) * scale

    with pytest.raises(lab.Diverged, match=r"nan in epoch 2, step 5.*learning rate") as caught:
        trained(digits, lab.Training(epochs=3), loss=loss)
    assert len(caught.value.history.frame) == 1


def test_a_probe_is_kept_epoch_by_epoch(digits):
    images, labels = next(batches(digits.train, digits, 64))
    _, history = trained(digits, lab.Training(epochs=2), probe=lambda model: lab.gradient_norms(model, images, labels))
    assert sorted(history.probes["epoch"].unique()) == [1, 2]
    assert len(history.probes) == 2 * 6


def test_without_validation_the_last_epoch_counts():
    data = lab.load_data("mnist", source="builtin", validation=0, device="cpu")
    _, history = trained(data, lab.Training(epochs=2, scheduler="plateau"))
    assert history.frame["validation_loss"].isna().all()
    assert history.best_epoch == 2
    with pytest.raises(lab.SettingError, match="validation=0"):
        lab.evaluate(lab.MLP(1, 8), "validation", data)


class Fixed(nn.Module):
    """Logits that are given, whatever the images."""

    def __init__(self, logits):
        super().__init__()
        self.logits, self.seen = logits, 0

    def forward(self, images):
        chosen = self.logits[self.seen : self.seen + len(images)]
        self.seen += len(images)
        return chosen


@settings(max_examples=20)
@given(seed=st.integers(0, 1_000))
def test_evaluate_measures_what_it_says(digits, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(digits.test), 10, generator=generator)
    measured = lab.evaluate(Fixed(logits), digits.test, digits)
    ranks = (logits > logits.gather(1, digits.test.labels[:, None])).sum(1)
    probabilities = logits.double().softmax(1).gather(1, digits.test.labels[:, None])
    assert measured["top1"] == pytest.approx((ranks < 1).double().mean().item())
    assert measured["top5"] == pytest.approx((ranks < 5).double().mean().item())
    assert measured["loss"] == pytest.approx(-probabilities.log().mean().item(), rel=1e-5)


def test_evaluate_uses_eval_mode_and_puts_the_mode_back(digits):
    model = lab.MLP(2, 16, dropout=0.9, normalization="batch").train()
    before = copy.deepcopy(model.state_dict())
    assert lab.evaluate(model, "test", digits) == lab.evaluate(model, "test", digits)
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_bf16_is_used_where_it_pays():
    convolution, mlp = nn.Sequential(nn.Conv2d(1, 1, 3)), lab.MLP(2, 16)
    assert isinstance(autocast(convolution, CPU, "auto"), torch.autocast) == has_native_bf16(CPU)
    assert not isinstance(autocast(mlp, CPU, "auto"), torch.autocast)
    assert not isinstance(autocast(convolution, CPU, "fp32"), torch.autocast)
    with autocast(mlp, CPU, "bf16"):
        assert mlp(torch.randn(2, 784)).dtype == torch.bfloat16


def test_training_in_bf16_works(digits):
    _, history = trained(digits, lab.Training(epochs=2, precision="bf16"))
    assert history.frame["train_loss"].is_monotonic_decreasing


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"epochs": 0}, ["epochs", "0", "from 1"]),
        ({"epochs": 1.5}, ["epochs", "1.5"]),
        ({"batch_size": 0}, ["batch_size", "from 1"]),
        ({"optimizer": "adm"}, ["optimizer", "adm", "adamw"]),
        ({"lr": 0}, ["lr", "0", "above 0"]),
        ({"lr": float("inf")}, ["lr", "inf"]),
        ({"momentum": 1}, ["momentum", "below 1"]),
        ({"weight_decay": -1}, ["weight_decay", "from 0"]),
        ({"scheduler": "step"}, ["scheduler", "step", "cosine"]),
        ({"patience": 0}, ["patience", "from 1"]),
        ({"label_smoothing": 1}, ["label_smoothing", "below 1"]),
        ({"augment": "wild"}, ["augment", "wild", "basic"]),
        ({"precision": "fp8"}, ["precision", "fp8", "bf16"]),
        ({"seed": -1}, ["seed", "from 0"]),
    ],
)
def test_wrong_settings_are_named(arguments, words):
    with pytest.raises(lab.SettingError) as caught:
        lab.Training(**{"epochs": 1} | arguments)
    assert all(word in str(caught.value) for word in words)


def test_averaging_keeps_the_moving_average_of_the_weights(digits):
    """Against the same training step by step, averaged by hand."""
    training = lab.Training(epochs=2, batch_size=300, optimizer="sgd", lr=0.1, averaging=0.8)
    model, history = trained(digits, training, normalization="batch")
    torch.manual_seed(0)
    plain = lab.MLP(2, 16, normalization="batch")
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    order, average, scores = torch.Generator().manual_seed(0), None, []
    for _ in range(2):
        plain.train()
        for images, labels in batches(digits.train, digits, 300, generator=order):
            F.cross_entropy(plain(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
            now = {name: tensor.clone().double() for name, tensor in plain.state_dict().items()}
            average = now if average is None else {name: 0.8 * average[name] + 0.2 * now[name] for name in now}
        averaged = copy.deepcopy(plain)
        averaged.load_state_dict({name: tensor.to(plain.state_dict()[name].dtype) for name, tensor in average.items()})
        scores.append((lab.evaluate(averaged, "validation", digits)["top1"], averaged.head.weight))
    assert history.frame["validation_accuracy"].tolist() == pytest.approx([score for score, _ in scores], abs=0.005)
    best = scores[history.best_epoch - 1][1]
    assert torch.allclose(model.head.weight, best, atol=1e-4)
    assert not torch.allclose(model.head.weight, plain.head.weight, atol=1e-3)


def test_flips_average_an_image_with_its_mirror_image(digits):
    torch.manual_seed(0)
    model = lab.MLP(1, 16)
    mirrored = lab.Split(digits.test.images.flip(-1), digits.test.labels)
    both = lab.predict(model, "test", digits)[0] + lab.predict(model, mirrored, digits)[0]
    flipped, labels = lab.predict(model, "test", digits, views=2)
    assert torch.allclose(flipped, both / 2, atol=1e-6)
    assert lab.evaluate(model, "test", digits, views=2)["top1"] == (both.argmax(1) == labels).double().mean()


def test_six_views_are_moved_by_a_pixel_to_two_corners(digits):
    torch.manual_seed(0)
    model = lab.MLP(1, 8)
    images = digits.normalise(digits.test.images)
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
    with torch.no_grad():
        middle, up, down = (
            model(view) + model(view.flip(-1)) for view in (images, padded[..., :28, :28], padded[..., 2:, 2:])
        )
    found, _ = lab.predict(model, "test", digits, views=6)
    assert torch.allclose(found, middle / 4 + up / 8 + down / 8, atol=1e-6)


def test_another_number_of_views_is_named(digits):
    with pytest.raises(lab.SettingError, match="views: 3 was given; allowed: 1, 2, 6"):
        lab.evaluate(lab.MLP(1, 8), "test", digits, views=3)


def test_a_model_of_other_classes_is_named(digits):
    with pytest.raises(lab.SettingError, match="classes: 7 was given; allowed: 10"):
        lab.fit(lab.MLP(1, 8, classes=7), digits, lab.Training(epochs=1), progress=False)


def test_whitening_an_mlp_is_refused(digits):
    with pytest.raises(lab.SettingError, match="whitening: MLP"):
        lab.fit(lab.MLP(1, 8), digits, lab.Training(epochs=1, whitening=True), progress=False)


@pytest.mark.parametrize("scheduler", ["onecycle", "triangular"])
@pytest.mark.parametrize("optimizer", ["sgd", "muon", "adam"])
def test_one_cycle_leaves_momentum_as_it_was_set(digits, optimizer, scheduler):
    training = lab.Training(epochs=2, optimizer=optimizer, momentum=0.6, scheduler=scheduler)
    model = lab.MLP(1, 8)
    made = training_module.make_optimizer(model, training)
    scheduler = training_module.make_scheduler(made, training, steps=4)
    for _ in range(7):
        made.step()
        scheduler.step()
        group = made.param_groups[0]
        assert group.get("betas", (0.6,))[0] == (0.9 if optimizer == "adam" else 0.6)
        assert group.get("momentum", 0.6) == 0.6


def test_each_step_is_told_with_the_epochs_so_far(digits):
    told = []
    _, history = trained(digits, lab.Training(epochs=2), on_step=lambda *given: told.append(given))
    epochs, losses = zip(*told, strict=True)
    steps = len(told) // 2
    assert epochs == pytest.approx([number / steps for number in range(1, 2 * steps + 1)])
    for number, row in enumerate(history.rows):
        mean = torch.stack(losses[number * steps : (number + 1) * steps]).mean()
        assert mean.item() == pytest.approx(row["train_loss"])


@pytest.mark.parametrize(("when", "kept"), [(1.0, 0), (1.1, 1)], ids=["before validation", "in training"])
def test_work_that_is_stoppable_ends_between_two_batches(digits, when, kept):
    asked = threading.Event()
    with stoppable(asked):
        _, history = trained(
            digits, lab.Training(epochs=50), on_step=lambda epochs, loss: epochs >= when and asked.set()
        )
        with pytest.raises(KeyboardInterrupt):
            next(batches(digits.train, digits, 8))
    assert history.interrupted
    assert len(history.rows) == kept
    assert len(next(batches(digits.train, digits, 8))[0]) == 8


def test_another_thread_is_not_asked_to_stop(digits):
    asked = threading.Event()
    asked.set()
    drawn = []
    with stoppable(asked):
        other = threading.Thread(target=lambda: drawn.extend(batches(digits.train, digits, 500)))
        other.start()
        other.join(20)
    assert drawn
