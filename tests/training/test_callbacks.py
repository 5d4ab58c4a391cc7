import copy
import threading

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

import labutils as lab
from labutils.training import Callback, Probe, loop
from labutils.training.callbacks import Continues
from labutils.training.stop_button import stoppable


class Act(Callback):
    """Does what it is given at the moments it is given for."""

    def __init__(self, **moments):
        vars(self).update(moments)


def trained(data, training, depth=2, width=16, normalization=None, **options):
    torch.manual_seed(0)
    model = lab.MLP(depth, width, normalization=normalization)
    return model, lab.fit(model, data, training, progress=False, **options)


def test_plateau_halves_the_rate_after_more_than_two_bad_epochs(digits, monkeypatch):
    losses = iter([1.0, 2.0, 2.0, 2.0, 2.0, 2.0])
    measured = lambda state: {"validation_loss": next(losses), "validation_accuracy": 0.5}  # noqa: E731
    monkeypatch.setattr(loop, "validation_figures", measured)
    _, history = trained(digits, lab.Training(epochs=6, lr=0.01, scheduler="plateau"))
    assert history.frame["lr"].tolist() == pytest.approx([0.01] * 4 + [0.005] * 2)


def test_patience_stops_early(digits, monkeypatch):
    accuracies = iter([0.5, 0.6, 0.6, 0.5, 0.9])
    measured = lambda state: {"validation_loss": 1.0, "validation_accuracy": next(accuracies)}  # noqa: E731
    monkeypatch.setattr(loop, "validation_figures", measured)
    _, history = trained(digits, lab.Training(epochs=5, patience=2))
    assert history.stopped_early
    assert len(history.frame) == 4
    assert history.best_epoch == 2


def test_a_probe_is_kept_epoch_by_epoch(digits):
    images, labels = next(lab.batches(digits.train, digits, 64))
    probe = Probe(lambda model: lab.gradient_norms(model, images, labels))
    _, history = trained(digits, lab.Training(epochs=2), callbacks=[probe])
    assert sorted(history.probes["epoch"].unique()) == [1, 2]
    assert len(history.probes) == 2 * 6


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
        for images, labels in lab.batches(digits.train, digits, 300, generator=order):
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


def test_each_moment_comes_when_it_should_and_the_state_says_where_the_training_stands(few):
    told = []

    def note(moment):
        return lambda state: told.append((moment, state.epochs, state.step, len(state.history.rows)))

    moments = ("before_training", "before_step", "after_step", "after_epoch", "after_training")
    trained(few, lab.Training(epochs=2, batch_size=80), callbacks=[Act(**{m: note(m) for m in moments})])

    def epoch(e):
        steps = [("before_step", e, 0, e), ("after_step", e + 0.5, 1, e)]
        return [*steps, ("before_step", e + 0.5, 1, e), ("after_step", e + 1, 2, e), ("after_epoch", e + 1, 0, e + 1)]

    assert told == [("before_training", 0, 0, 0), *epoch(0), *epoch(1), ("after_training", 2, 0, 2)]


def test_a_step_is_told_with_its_images_and_loss(few):
    seen = []
    torch.manual_seed(0)
    model = lab.MLP(1, 8)

    def before(state):
        assert torch.equal(state.images, few.normalise(few.train.images[state.indices]))
        with torch.no_grad():
            seen.append((state.indices, F.cross_entropy(state.model(state.images), few.train.labels[state.indices])))

    def after(state):
        assert state.loss.item() == pytest.approx(seen[-1][1].item(), rel=1e-5)
        assert not state.loss.requires_grad

    lab.fit(
        model,
        few,
        lab.Training(epochs=1, batch_size=50),
        callbacks=[Act(before_step=before, after_step=after)],
        progress=False,
    )
    assert sorted(torch.cat([indices for indices, _ in seen]).tolist()) == list(range(len(few.train)))


def test_a_training_that_continues_earlier_ones_counts_their_epochs(few):
    epochs = []
    _, earlier = trained(few, lab.Training(epochs=2))
    watch = Act(after_epoch=lambda state: epochs.append((state.epochs, len(state.whole_history.rows))))
    _, history = trained(few, lab.Training(epochs=2), callbacks=[Continues(earlier), watch])
    assert epochs == [(3, 3), (4, 4)]
    assert history.frame["epoch"].tolist() == [1, 2]


@pytest.mark.parametrize(("visible", "shown"), [(True, "validation accuracy"), (False, "")])
def test_progress_is_shown_where_it_is_wanted(few, capsys, monkeypatch, visible, shown):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    lab.fit(lab.MLP(1, 4), few, lab.Training(epochs=2), progress=visible)
    assert (shown in capsys.readouterr().err) if shown else not capsys.readouterr().err


@pytest.mark.parametrize(("when", "kept"), [(1.0, 0), (1.1, 1)], ids=["before validation", "in training"])
def test_a_stop_that_was_asked_for_ends_between_two_steps_and_returns(few, when, kept):
    asked, steps = threading.Event(), []

    def ask(state):
        steps.append(state.epochs)
        if state.epochs >= when:
            asked.set()

    stop = Act(after_step=ask)
    with stoppable(asked):
        model, history = trained(few, lab.Training(epochs=50, batch_size=16), callbacks=[stop])
    assert history.interrupted
    assert len(history.rows) == kept
    assert steps[-1] == pytest.approx(when)  # ten steps an epoch: none comes after the one in which it was asked
    if kept:
        found = lab.evaluate(model, "validation", few)["top1"]
        assert found == history.frame["validation_accuracy"].max()


def test_another_thread_is_not_asked_to_stop(few):
    asked, finished = threading.Event(), []
    asked.set()
    with stoppable(asked):
        other = threading.Thread(target=lambda: finished.append(trained(few, lab.Training(epochs=1))[1]))
        other.start()
        other.join(60)
    assert not finished[0].interrupted
