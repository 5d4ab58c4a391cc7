"""The training explorer without a browser: pressed from Python, waited for, looked at."""

import base64
import html
import io
import os
import threading
import time
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import labutils as lab
from labutils.experiments import running, store
from labutils.notebook.explorers import Growth, TrainingExplorer
from labutils.notebook.explorers.background import Job, use_one_core
from labutils.training.history import History
from labutils.training.stop_button import check_stop


@pytest.fixture
def explorer(store, experiment):
    explorer = TrainingExplorer(experiment, {"depth": [1, 2, 3], "width": [8, 16], "normalization": [None, "batch"]})
    yield explorer
    wait_for_the_end()


def wait_for_the_end():
    """Wait until nothing is in training."""
    job = Job.current
    if job is not None:
        job.thread.join(60)
        assert not job.thread.is_alive()


def press(explorer):
    explorer.press("train")
    wait_for_the_end()


def wait_for(happened):
    """Wait until something has happened in another thread."""
    for _ in range(6_000):
        if happened():
            return
        time.sleep(0.01)
    pytest.fail("it has not happened within a minute")


def picture(explorer):
    return np.asarray(Image.open(io.BytesIO(explorer.picture["png"])).convert("L"))


def test_train_runs_the_choice_and_draws_it(explorer):
    empty = picture(explorer)
    explorer.choose(depth=3)
    explorer.choose(normalization="batch")
    press(explorer)
    ((label, finished),) = explorer.runs.items()
    assert label == "depth 3, width 16, normalization batch"
    assert finished.experiment.model["depth"] == 3
    assert finished.experiment.model["normalization"] == "batch"
    assert f"{finished.metrics['validation_top1']:.2%}" in explorer.status
    assert not np.array_equal(picture(explorer), empty)
    assert explorer.enabled == ["train", "reset"]


def test_it_starts_at_the_experiments_own_settings(explorer):
    assert explorer.choice() == {"depth": 2, "width": 16, "normalization": None}
    assert explorer.offers[2]["words"][explorer.places["normalization"]] == "none"


def test_earlier_choices_stay_until_reset(explorer):
    for depth in (1, 2):
        explorer.choose(depth=depth)
        press(explorer)
    assert len(explorer.runs) == 2
    explorer.press("reset")
    assert not explorer.runs


def test_runs_from_before_are_there_from_the_start(store, experiment):
    finished = lab.run(experiment, progress=False)
    explorer = TrainingExplorer(experiment, {"depth": [1, 2], "scheduler": [None, "cosine"]}, earlier=[finished])
    assert explorer.runs == {"depth 2, scheduler none": finished}


def test_pressing_train_twice_starts_one_run(explorer):
    first = explorer.train()
    assert explorer.train() is first
    assert "only one thing at a time" in explorer.status


def test_stop_keeps_what_was_learnt(store, experiment):
    explorer = TrainingExplorer(experiment.override(epochs=500), {"depth": [4]})
    explorer.press("train")
    wait_for(lambda: explorer.growing and explorer.job.growth.rows)
    explorer.press("stop")
    wait_for_the_end()
    (finished,) = explorer.runs.values()
    assert finished.history.interrupted
    assert 1 <= len(finished.history.frame) < 500
    assert "stopped early by you" in explorer.status


def test_stop_need_not_wait_for_an_epochs_end(store, experiment):
    # An epoch of minutes: were it waited for, the test would fail.
    slow = experiment.override(epochs=2, batch_size=1, **{"data.limit": None})
    explorer = TrainingExplorer(slow, {"depth": [40], "width": [512]})
    explorer.press("train")
    wait_for(lambda: explorer.growing)
    assert 0 < explorer.progress["share"] < 0.5
    assert explorer.progress["words"].startswith("In training: depth 40, width 512: epoch 1 of 2")
    explorer.press("stop")
    wait_for_the_end()
    assert Job.running() is None
    assert "stopped early by you, before its first epoch ended" in explorer.status
    assert explorer.enabled == ["train", "reset"]
    assert not explorer.growing


def test_the_curve_grows_from_the_first_step_on(explorer, monkeypatch):
    frames = []
    draw = explorer.draw
    monkeypatch.setattr(explorer, "draw", lambda: (frames.extend(explorer.growing.values()), draw()))
    press(explorer)
    assert 0 < frames[0]["epoch"].iloc[0] < 1
    assert frames[0]["train_loss"].notna().all()
    assert frames[0]["validation_loss"].isna().all()
    whole = frames[-1].dropna()
    (finished,) = explorer.runs.values()
    assert whole["epoch"].tolist() == [1, 2]
    assert whole["train_loss"].tolist() == finished.history.frame["train_loss"].tolist()
    assert explorer.progress == {}


def test_what_the_store_has_is_drawn_as_soon_as_it_is_chosen(explorer):
    kept = lab.run(explorer.experiment.override(depth=3), progress=False)
    assert "has not been trained" in explorer.status
    explorer.choose(depth=3)
    ((label, found),) = explorer.runs.items()
    assert label == "depth 3, width 16, normalization none"
    assert found.metrics == kept.metrics
    assert f"{kept.metrics['validation_top1']:.2%}" in explorer.status


def test_a_move_in_mid_run_is_drawn_with_the_next_piece_of_the_curve(explorer, monkeypatch):
    lab.run(explorer.experiment.override(depth=3), progress=False)
    drawn = []
    monkeypatch.setattr(explorer, "draw", lambda: drawn.append((*explorer.curves, *explorer.growing)))
    growing = pd.DataFrame({"epoch": [0.5], "train_loss": [2.0]})
    explorer.growing = {"in training": growing}
    explorer.choose(depth=3)
    assert drawn == []
    explorer.grow(Mock(label="in training"), Mock(frame=growing))
    assert drawn == [("depth 3, width 16, normalization none", "in training")]


def test_moves_in_mid_run_change_nothing_of_what_is_in_training(store, experiment):
    explorer = TrainingExplorer(experiment.override(epochs=8), {"depth": [1, 2, 3, 4]})
    explorer.press("train")
    for depth in (1, 3, 4) * 3:
        explorer.choose(depth=depth)
        explorer.train()
    wait_for_the_end()
    ((label, finished),) = explorer.runs.items()
    assert label == "depth 2"
    assert finished.experiment == experiment.override(epochs=8)


def run_shown_code(explorer):
    """The code of the explorer's link, run as a cell of its notebook."""
    names = {"lab": lab, "torch": torch}
    exec(explorer.code, names)
    return names


def test_the_code_does_what_the_training_explorer_does(explorer):
    explorer.choose(depth=3)
    press(explorer)
    names = run_shown_code(explorer)
    (finished,) = explorer.runs.values()
    assert names["run"].path == finished.path


def test_an_error_shows_in_the_widget(explorer, monkeypatch):
    explorer.experiment = explorer.experiment.override(lr=1e30, optimizer="sgd")
    press(explorer)
    assert "Diverged" in explorer.status
    assert explorer.enabled == ["train", "reset"]


def test_a_page_without_widgets_gets_the_picture(explorer, monkeypatch):
    shown = Mock()
    monkeypatch.setattr("labutils.notebook.showing.display", shown)
    explorer._ipython_display_()
    (stand_in,), (widget,) = (call.args for call in shown.call_args_list)
    assert base64.b64encode(explorer.picture["png"]).decode() in stand_in["text/html"]
    assert f'alt="{html.escape(explorer.picture["alt"])}"' in stand_in["text/html"]
    assert "run this cell" in stand_in["text/html"]
    assert list(widget) == ["application/vnd.jupyter.widget-view+json"]


def test_the_picture_for_pages_without_widgets_is_always_the_newest(explorer, monkeypatch):
    monkeypatch.setattr("labutils.notebook.showing.display", Mock())
    explorer._ipython_display_()
    press(explorer)
    assert explorer.stand_in.update.call_args.args == (explorer.stand_in_bundle(),)
    assert base64.b64encode(explorer.picture["png"]).decode() in explorer.stand_in_bundle()["text/html"]


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({}, "choices"),
        ({"dpeth": [1]}, "did you mean model.depth"),
        ({"depth": []}, "choices.depth"),
        ({"depth": [1, 0]}, "depth"),
    ],
)
def test_wrong_choices_are_named(experiment, choices, words):
    with pytest.raises(lab.SettingError, match=words):
        TrainingExplorer(experiment, choices)


@pytest.fixture
def banked(store):
    experiment = lab.Experiment.load("cnn_depth", profile="smoke", width=2, residual=False)
    rows = [
        {"blocks": "[1, 1, 1, 1]", "width": 2, "residual": residual, "seed": seed, "epoch": epoch,
         "run": f"{residual}{seed}", "train_loss": 2.0 - epoch / 2, "train_accuracy": epoch / 3,
         "validation_loss": 2.1 - epoch / 2,
         "validation_accuracy": epoch / 4 + seed / 10, "seconds": 30.0, "data": "some pictures", "source": "builtin",
         "epochs": 2, "processor": "an abacus", "torch": "2.0"}
        for residual in (False, True)
        for seed in (0, 1)
        for epoch in (1, 2)
    ]  # fmt: skip
    choices = {"blocks": [[1, 1, 1, 1], [2, 1, 1, 1]], "width": [2, 4], "residual": [False, True]}
    explorer = TrainingExplorer(experiment, choices, banked=pd.DataFrame(rows))
    yield explorer
    wait_for_the_end()


def last_drawn(explorer, monkeypatch):
    """The curves that an explorer draws, and their caption."""
    history = Mock(wraps=lab.plots.history)
    monkeypatch.setattr(lab.plots, "history", history)
    explorer.draw()
    return history.call_args.args[0], history.call_args.kwargs["caption"]


def test_a_banked_choice_is_drawn_as_soon_as_it_is_made(banked, monkeypatch):
    first = picture(banked)
    frames, _ = last_drawn(banked, monkeypatch)
    label = "blocks 1-1-1-1, width 2, residual no (bank, n = 2)"
    assert frames[label]["validation_accuracy"].tolist() == pytest.approx([0.3, 0.55])
    assert "55.00% ± 7.07%" in banked.status
    assert "1.0 minutes" in banked.status
    banked.choose(residual=True)
    assert not np.array_equal(first, picture(banked))
    assert [name.split(" (")[0][-3:] for name in banked.curves] == [" no", "yes"]


def test_a_choice_that_is_not_banked_can_be_trained(banked):
    drawn = picture(banked)
    banked.choose(blocks=[2, 1, 1, 1])
    assert "blocks 2-1-1-1, width 2, residual no</b> has not been trained" in banked.status
    assert np.array_equal(drawn, picture(banked))
    press(banked)
    ((label, finished),) = banked.runs.items()
    assert label == "blocks 2-1-1-1, width 2, residual no"
    assert finished.experiment.model["blocks"] == [2, 1, 1, 1]
    assert finished.history.probes is None  # though the experiment logs gradients
    assert "validation accuracy" in banked.status
    assert not np.array_equal(drawn, picture(banked))
    banked.press("reset")
    assert not banked.curves
    assert not banked.runs


def test_the_five_newest_choices_are_drawn_whether_trained_or_banked(banked, monkeypatch):
    press(banked)
    (finished,) = banked.runs.values()
    for number in range(6):
        banked.add_run(f"trained {number}", finished)
    banked.choose(residual=True)
    drawn = [name.split(" (bank")[0] for name in last_drawn(banked, monkeypatch)[0]]
    assert drawn == [*(f"trained {number}" for number in range(2, 6)), "blocks 1-1-1-1, width 2, residual yes"]


def test_a_single_banked_run_has_no_spread(banked, monkeypatch):
    banked.press("reset")
    banked.banked = banked.banked[~banked.banked["residual"] | (banked.banked["seed"] == 0)]
    banked.choose(residual=True)
    assert "validation accuracy 50.00% after" in banked.status
    assert "n = 1 seed;" in last_drawn(banked, monkeypatch)[1]


def in_a_new_thread(function):
    found = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_training_an_mlp_takes_one_core_and_leaves_all_other_threads_theirs(explorer, three_threads):
    press(explorer)
    (trained,) = explorer.runs.values()
    assert trained.metrics["threads"] == 1
    assert torch.get_num_threads() == 3
    assert in_a_new_thread(torch.get_num_threads) == 3


def test_one_core_stays_the_threads_own_however_often_it_is_asked_for(three_threads):
    def twice():
        use_one_core()
        use_one_core()
        return torch.get_num_threads(), in_a_new_thread(torch.get_num_threads)

    assert in_a_new_thread(twice) == (1, 3)


@pytest.fixture
def busy(explorer, monkeypatch):
    """An explorer whose run another process is training: its lock, held until the test lets it go."""
    monkeypatch.setattr("labutils.notebook.explorers.background.BUSY_POLL_S", 0.01)
    experiment = explorer.experiment
    path = store.run_path(experiment.identity(running.load_experiment_data(experiment)))
    lock = store.lock(path)
    with lock.acquire(), store.signed_lock(path):
        explorer.press("train")
        wait_for(lambda: "is being trained by" in explorer.status)
        yield explorer, lock, path


def test_a_run_in_training_elsewhere_is_named_and_stop_gives_it_up(busy):
    explorer, _, path = busy
    assert f"is being trained by process {os.getpid()} on " in explorer.status
    assert Job.running()
    explorer.press("stop")
    wait_for_the_end()
    assert Job.running() is None
    assert "stopped early by you, before its first step" in explorer.status
    assert explorer.enabled == ["train", "reset"]
    assert not explorer.runs
    assert not path.exists()


def test_a_move_while_waiting_keeps_the_last_word(busy):
    explorer, _, _ = busy
    explorer.choose(depth=3)
    said = explorer.status
    assert "depth 3" in said
    time.sleep(0.1)
    assert explorer.status == said
    explorer.press("stop")


def test_a_run_that_was_in_training_elsewhere_is_trained_once_its_lock_is_free(busy):
    explorer, lock, path = busy
    lock.release()
    wait_for_the_end()
    (trained,) = explorer.runs.values()
    assert trained.path == path


def test_a_run_that_was_trained_elsewhere_is_shown_when_it_is_there(explorer, store, monkeypatch):
    trained = lab.run(explorer.experiment, progress=False)
    explorer.press("reset")
    trained.path.rename(store / "elsewhere")
    monkeypatch.setattr("labutils.notebook.explorers.background.BUSY_POLL_S", 0.01)
    monkeypatch.setattr(running, "train", lambda *_, **__: pytest.fail("trained again"))
    with running.store.lock(trained.path).acquire():
        explorer.press("train")
        wait_for(lambda: "is being trained by another process" in explorer.status)
        (store / "elsewhere").rename(trained.path)
        wait_for_the_end()
    (found,) = explorer.runs.values()
    assert found.metrics == trained.metrics
    assert "validation accuracy" in explorer.status


def test_a_stop_before_the_first_step_is_said(explorer, monkeypatch):
    def stopped(*_):
        explorer.press("stop")
        check_stop()

    monkeypatch.setattr(running, "untrained", stopped)
    press(explorer)
    assert "stopped early by you, before its first step" in explorer.status
    assert not explorer.runs
    assert explorer.enabled == ["train", "reset"]


def test_a_stop_after_the_last_epoch_is_said_and_the_run_goes_on_from_there(explorer, monkeypatch):
    def stopped(*_):
        explorer.press("stop")
        check_stop()

    with monkeypatch.context() as patched:
        patched.setattr(running, "final_figures", stopped)
        press(explorer)
    assert "stopped early by you, after 2 epochs" in explorer.status
    assert not explorer.growing
    press(explorer)
    (trained,) = explorer.runs.values()
    assert trained.finished


def test_a_run_that_was_stopped_here_and_finished_elsewhere_is_shown_finished(explorer):
    def stop_after_an_epoch(job, growth):
        if growth.epochs >= 1:
            job.stopping.set()

    explorer.grow = stop_after_an_epoch
    press(explorer)
    assert [run.finished for run in explorer.runs.values()] == [False]
    explorer.choose(depth=1)
    finished = lab.run(explorer.experiment, progress=False)
    explorer.choose(depth=2)
    assert explorer.runs["depth 2, width 16, normalization none"].metrics == finished.metrics
    assert "stopped" not in explorer.status


def state(epochs, loss, rows):
    return Mock(epochs=epochs, loss=torch.tensor(loss), whole_history=History(rows))


def test_growth_reports_a_resumed_training_with_the_epochs_before():
    frames = []
    growth = Growth(3, lambda growth: frames.append(growth.frame))
    first = {"epoch": 1, "train_loss": 2.0, "train_accuracy": 0.5, "validation_loss": 2.5, "validation_accuracy": 0.4}
    growth.after_step(state(1.5, 1.0, [first]))
    assert frames[-1]["epoch"].tolist() == [1, 1.5]
    assert frames[-1]["train_loss"].tolist() == [2, 1]
    growth.due = 0
    growth.after_epoch(state(2.0, 1.0, [first, first | {"epoch": 2}]))
    assert frames[-1]["epoch"].tolist() == [1, 2]
    assert frames[-1]["validation_accuracy"].tolist() == [0.4, 0.4]
    assert growth.epochs == 2
    growth.after_step(state(2.1, 0.1, [first, first | {"epoch": 2}]))
    assert len(frames) == 2  # one step's loss is no point of the curve


def test_growth_reports_rarely_but_loses_no_loss(monkeypatch):
    clock = Mock(perf_counter=Mock(side_effect=[0, 0, 0, 0.1, 9, 9, 9]))
    monkeypatch.setattr("labutils.notebook.explorers.background.time", clock)
    frames = []
    growth = Growth(1, lambda growth: frames.append(growth.frame))
    for epochs, loss in ((0.1, 3.0), (0.2, 2.0), (0.3, 1.0)):
        growth.after_step(state(epochs, loss, []))
    assert len(frames) == 2
    assert frames[-1]["train_loss"].tolist() == [3, 1.5]


@pytest.fixture
def training(store, experiment):
    """An explorer in training that would go on for minutes, after its first step."""
    explorer = TrainingExplorer(experiment.override(epochs=500), {"depth": [2, 4]})
    explorer.press("train")
    wait_for(lambda: explorer.growing)
    yield explorer
    if Job.current is not None:
        Job.current.stopping.set()
    wait_for_the_end()


def test_a_move_leaves_the_line_that_says_what_is_in_training(training):
    training.choose(depth=4)
    assert "depth 4</b> has not been trained" in training.status
    assert training.progress["words"].startswith("In training: depth 2: epoch ")
    training.choose(depth=2)
    assert training.status == "<b>depth 2</b> is in training."


def test_a_new_explorer_takes_over_what_is_in_training(training):
    job = training.job
    again = TrainingExplorer(training.experiment, {"depth": [2, 4]})
    assert (again.job, training.job) == (job, None)
    assert (again.enabled, training.enabled) == (["stop"], ["train", "reset"])
    wait_for(lambda: again.growing)
    assert training.progress == {}
    assert "made last" in training.status
    assert training.train() is job
    again.press("stop")
    wait_for_the_end()
    assert "stopped early by you" in again.status
    assert list(again.runs) == ["depth 2"]
    assert not training.runs


def test_an_explorer_does_not_take_over_what_has_just_ended(training):
    job = training.job
    training.press("stop")
    wait_for_the_end()
    late = TrainingExplorer(training.experiment, {"depth": [2]})
    late.take_over(job)
    assert late.job is None
    assert late.enabled == ["train", "reset"]


def test_the_teachers_answers_are_a_phase_with_progress_that_stop_ends(store, monkeypatch):
    experiment = lab.Experiment.load("distillation", profile="smoke")
    explorer = TrainingExplorer(experiment, {"alpha": [0.9]})
    said = []

    def show_progress(job, words, share):
        said.append((words, share))
        if share > 0:
            explorer.press("stop")

    monkeypatch.setattr(explorer, "show_progress", show_progress)
    press(explorer)
    assert said[0] == ("getting ready", 0)
    assert said[1] == ("teacher's answers 0%", 0)
    words, share = said[-1]
    assert words == f"teacher's answers {share:.0%}"
    assert "stopped early by you, before its first step" in explorer.status


def test_without_a_validation_split_the_training_accuracy_is_said(store, experiment):
    explorer = TrainingExplorer(experiment.override(**{"data.validation": 0}), {"depth": [2]})
    press(explorer)
    assert ": training accuracy " in explorer.status
    assert "nan" not in explorer.status
