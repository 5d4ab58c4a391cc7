"""The explorer without a browser: pressed from Python, waited for, looked at."""

import base64
import html
import io
import re
import time
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import labutils as lab
from labutils.widgets import GradientExplorer, TemperatureExplorer, TrainingExplorer, TransferExplorer


@pytest.fixture
def explorer(store, experiment):
    explorer = TrainingExplorer(experiment, {"depth": [1, 2, 3], "width": [8, 16], "normalization": [None, "batch"]})
    yield explorer
    if explorer.worker:
        explorer.worker.join(60)


def press(explorer):
    explorer.train_button.click()
    explorer.worker.join(60)
    assert not explorer.worker.is_alive()


def picture(explorer):
    return np.asarray(Image.open(io.BytesIO(explorer.figure.value)).convert("L"))


def test_train_runs_the_choice_and_draws_it(explorer):
    empty = picture(explorer)
    explorer.controls["depth"].value = 3
    explorer.controls["normalization"].value = "batch"
    press(explorer)
    ((label, finished),) = explorer.runs.items()
    assert label == "depth 3, width 16, normalization batch"
    assert finished.experiment.model["depth"] == 3
    assert finished.experiment.model["normalization"] == "batch"
    assert f"{finished.metrics['validation_top1']:.2%}" in explorer.status.value
    assert explorer.progress.value == 2
    assert not np.array_equal(picture(explorer), empty)
    assert (explorer.train_button.disabled, explorer.stop_button.disabled) == (False, True)


def test_it_starts_at_the_experiments_own_settings(explorer):
    assert explorer.choice() == {"depth": 2, "width": 16, "normalization": None}
    assert explorer.controls["normalization"].label == "none"


def test_training_takes_one_thread_and_leaves_the_main_thread_its_own(explorer):
    threads = torch.get_num_threads()
    press(explorer)
    (finished,) = explorer.runs.values()
    assert finished.metrics["threads"] == 1
    assert torch.get_num_threads() == threads


def test_earlier_choices_stay_until_reset(explorer):
    for depth in (1, 2):
        explorer.controls["depth"].value = depth
        press(explorer)
    assert len(explorer.runs) == 2
    explorer.reset_button.click()
    assert not explorer.runs
    assert explorer.progress.value == 0


def test_runs_from_before_are_there_from_the_start(store, experiment):
    finished = lab.run(experiment, progress=False)
    explorer = TrainingExplorer(experiment, {"depth": [1, 2], "scheduler": [None, "cosine"]}, earlier=[finished])
    assert explorer.runs == {"depth 2, scheduler none": finished}


def test_pressing_train_twice_starts_one_run(explorer):
    explorer.train_button.click()
    first = explorer.worker
    explorer.train()
    assert explorer.worker is first


def test_stop_keeps_what_was_learnt(store, experiment):
    explorer = TrainingExplorer(experiment.override(epochs=500), {"depth": [4]})
    explorer.train_button.click()
    while explorer.progress.value < 1:
        time.sleep(0.01)
    explorer.stop_button.click()
    explorer.worker.join(20)
    (finished,) = explorer.runs.values()
    assert finished.history.interrupted
    assert 1 <= len(finished.history.frame) < 500
    assert "stopped early by you" in explorer.status.value


def test_stop_takes_less_than_a_second_and_the_run_goes_on_from_there(store, experiment):
    # An epoch of minutes: were it waited for, the test would fail.
    slow = experiment.override(epochs=2, batch_size=1, **{"data.limit": None})
    explorer = TrainingExplorer(slow, {"depth": [40], "width": [512]})
    explorer.train_button.click()
    while not explorer.growing:
        time.sleep(0.01)
    assert 0 < explorer.progress.value < 1
    assert "epoch 1 of 2" in explorer.time_left.value
    start = time.perf_counter()
    explorer.stop_button.click()
    explorer.worker.join(20)
    assert time.perf_counter() - start < 1
    assert "stopped early by you, before its first epoch ended" in explorer.status.value
    assert (explorer.train_button.disabled, explorer.stop_button.disabled) == (False, True)
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
    assert explorer.time_left.value == ""


def test_what_the_store_has_is_drawn_as_soon_as_it_is_chosen(explorer):
    kept = lab.run(explorer.experiment.override(depth=3), progress=False)
    assert "has not been trained" in explorer.status.value
    explorer.controls["depth"].value = 3
    ((label, found),) = explorer.runs.items()
    assert label == "depth 3, width 16, normalization none"
    assert found.metrics == kept.metrics
    assert f"{kept.metrics['validation_top1']:.2%}" in explorer.status.value


def test_a_move_in_mid_run_is_drawn_with_the_next_piece_of_the_curve(explorer, monkeypatch):
    lab.run(explorer.experiment.override(depth=3), progress=False)
    drawn = []
    monkeypatch.setattr(explorer, "draw", lambda: drawn.append((*explorer.curves, *explorer.growing)))
    growing = pd.DataFrame({"epoch": [0.5], "train_loss": [2.0]})
    explorer.growing = {"in training": growing}
    explorer.controls["depth"].value = 3
    assert drawn == []
    explorer.grow("in training", Mock(epochs=0.6, time_left="", frame=growing))
    assert drawn == [("depth 3, width 16, normalization none", "in training")]


def test_moves_in_mid_run_change_nothing_of_what_is_in_training(store, experiment):
    explorer = TrainingExplorer(experiment.override(epochs=30), {"depth": [1, 2, 3, 4]})
    explorer.train_button.click()
    for depth in (1, 3, 4) * 10:
        explorer.controls["depth"].value = depth
        explorer.train()
    explorer.worker.join(60)
    ((label, finished),) = explorer.runs.items()
    assert label == "depth 2"
    assert finished.experiment == experiment.override(epochs=30)


def shown_code(explorer):
    """The code of the explorer's link, run as a cell of its notebook."""
    code = html.unescape(re.search("<pre>(.*)</pre>", explorer.code.value, re.DOTALL).group(1))
    names = {"lab": lab, "torch": torch}
    exec(code, names)
    return code, names


def test_the_code_does_what_the_training_explorer_does(explorer):
    explorer.controls["depth"].value = 3
    press(explorer)
    _, names = shown_code(explorer)
    (finished,) = explorer.runs.values()
    assert names["run"].path == finished.path


def test_an_error_shows_in_the_widget(explorer, monkeypatch):
    explorer.experiment = explorer.experiment.override(lr=1e30, optimizer="sgd")
    press(explorer)
    assert "Diverged" in explorer.status.value
    assert not explorer.train_button.disabled


def test_a_page_without_widgets_gets_the_picture(explorer):
    bundle = explorer._repr_mimebundle_()
    assert base64.b64decode(bundle["image/png"]) == explorer.figure.value
    assert "application/vnd.jupyter.widget-view+json" in bundle


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
def gradients(digits):
    choices = {
        "depth": [1, 5, 20],
        "width": [16, 64],
        "activation": ["relu", "tanh"],
        "residual": [False, True],
        "residual_scale": [1.0, "depth"],
    }
    return GradientExplorer(digits, choices, start={"depth": 20, "width": 64})


def test_gradients_are_measured_and_drawn_at_once(gradients, digits):
    assert gradients.choice()["depth"] == 20
    before = picture(gradients)
    gradients.controls["residual"].value = True
    assert not np.array_equal(picture(gradients), before)
    torch.manual_seed(0)
    model = lab.MLP(**gradients.choice())
    expected = lab.activation_gradients(model, gradients.images, gradients.labels)
    assert gradients.profile.equals(expected)
    assert str(lab.rate_per_layer(expected)) in gradients.status.value
    assert f"{lab.mean_field_rate(model):.4f}" in gradients.status.value


def test_the_code_does_what_the_gradient_explorer_does(gradients, digits):
    gradients.controls["residual"].value = True
    code = html.unescape(re.search("<pre>(.*)</pre>", gradients.code.value, re.DOTALL).group(1))
    names = {"lab": lab, "torch": torch, "data": digits}
    exec(code, names)
    assert names["profile"].equals(gradients.profile)


def test_where_theory_is_silent_the_explorer_says_so(gradients):
    gradients.controls["activation"].value = "tanh"
    assert "no closed form" in gradients.status.value
    gradients.controls["depth"].value = 1
    assert "no rate" in gradients.status.value


def test_earlier_profiles_stay_until_reset(gradients):
    for depth in (5, 20, 5, 20, 5, 20):
        gradients.controls["depth"].value = depth
    assert len(gradients.earlier) == 4
    gradients.reset_button.click()
    assert not gradients.earlier


def test_a_move_that_fails_shows_in_the_widget(gradients, monkeypatch):
    monkeypatch.setattr("labutils.widgets.activation_gradients", lambda *_: 1 / 0)
    drawn = gradients.figure.value
    gradients.controls["depth"].value = 5
    assert "ZeroDivisionError" in gradients.status.value
    assert gradients.figure.value == drawn


def test_a_move_takes_less_than_150_ms(digits):
    explorer = GradientExplorer(digits, {"width": [128], "depth": [20, 40]}, start={"depth": 20})
    explorer.controls["depth"].value = 40
    times = []
    for depth in (20, 40) * 4:
        explorer.controls["depth"].value = depth
        times.append(explorer.milliseconds)
    assert min(times) < 150


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
    if explorer.worker:
        explorer.worker.join(60)


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
    assert "55.00% ± 7.07%" in banked.status.value
    assert "1.0 minutes" in banked.status.value
    banked.controls["residual"].value = True
    assert not np.array_equal(first, picture(banked))
    assert [name.split(" (")[0][-3:] for name in banked.curves] == [" no", "yes"]


def test_a_choice_that_is_not_banked_can_be_trained(banked):
    drawn = picture(banked)
    banked.controls["blocks"].value = [2, 1, 1, 1]
    assert "blocks 2-1-1-1, width 2, residual no</b> has not been trained" in banked.status.value
    assert np.array_equal(drawn, picture(banked))
    press(banked)
    ((label, finished),) = banked.runs.items()
    assert label == "blocks 2-1-1-1, width 2, residual no"
    assert finished.experiment.model["blocks"] == [2, 1, 1, 1]
    assert finished.history.probes is None  # though the experiment logs gradients
    assert "validation accuracy" in banked.status.value
    assert not np.array_equal(drawn, picture(banked))
    banked.reset_button.click()
    assert not banked.curves
    assert not banked.runs


def test_the_five_newest_choices_are_drawn_whether_trained_or_banked(banked, monkeypatch):
    press(banked)
    (finished,) = banked.runs.values()
    for number in range(6):
        banked.add_run(f"trained {number}", finished)
    banked.controls["residual"].value = True
    drawn = [name.split(" (bank")[0] for name in last_drawn(banked, monkeypatch)[0]]
    assert drawn == [*(f"trained {number}" for number in range(2, 6)), "blocks 1-1-1-1, width 2, residual yes"]


def test_a_single_banked_run_has_no_spread(banked, monkeypatch):
    banked.reset_button.click()
    banked.banked = banked.banked[~banked.banked["residual"] | (banked.banked["seed"] == 0)]
    banked.controls["residual"].value = True
    assert "validation accuracy 50.00% after" in banked.status.value
    assert "n = 1 seed;" in last_drawn(banked, monkeypatch)[1]


@pytest.fixture
def transfers(store):
    torch.manual_seed(0)
    centres = 2 * torch.randn(6, 8)

    def split(count):
        labels = torch.arange(count) % 6
        return centres[labels] + torch.randn(count, 8), labels

    banked = pd.DataFrame(
        {
            "method": ["fine_tuning"] * 4,
            "stages": [1, 1, -1, -1],
            "seed": [0, 1, 0, 1],
            "validation_top1": [0.5, 0.6, 0.7, 0.8],
        }
    )
    choices = {
        "method": ["knn", "probe", "fine_tuning"],
        "k": [1, 5, 20],
        "C": [0.001, 0.1],
        "stages": [1, -1],
    }
    experiment = lab.Experiment.load("transfer_ladder", profile="smoke")
    explorer = TransferExplorer(experiment, split(600), split(120), banked, choices, caption="blobs")
    yield explorer
    if explorer.worker:
        explorer.worker.join(60)


def test_a_head_is_found_as_soon_as_it_is_chosen(transfers):
    ((label, first),) = transfers.found.items()
    assert label == "knn, k 1"
    assert first == lab.knn(transfers.features, transfers.validation, k=1)["top1"]
    before = picture(transfers)
    transfers.controls["k"].value = 20
    assert transfers.found["knn, k 20"] == lab.knn(transfers.features, transfers.validation, k=20)["top1"]
    assert "600 training images" in transfers.status.value
    assert not np.array_equal(before, picture(transfers))
    transfers.controls["method"].value = "probe"
    assert (
        transfers.found["probe, C 0.001"] == lab.linear_probe(transfers.features, transfers.validation, C=0.001)["top1"]
    )


def test_fine_tuning_comes_from_the_bank_and_only_its_setting_can_be_moved(transfers):
    transfers.controls["method"].value = "fine_tuning"
    assert transfers.found["fine-tuning, stages 1 (bank, n = 2)"] == pytest.approx(0.55)
    assert "55.00% ± 7.07%" in transfers.status.value
    assert "n = 2" in transfers.status.value
    assert {name: widget.disabled for name, widget in transfers.controls.items()} == {
        "method": False, "k": True, "C": True, "stages": False,
    }  # fmt: skip
    transfers.controls["stages"].value = -1
    assert transfers.found["fine-tuning, stages -1 (bank, n = 2)"] == pytest.approx(0.75)
    transfers.reset_button.click()
    assert list(transfers.found) == ["fine-tuning, stages -1 (bank, n = 2)"]


def test_an_answer_that_fails_says_so_in_the_explorer(transfers):
    transfers.features[0][3, 3] = float("nan")
    transfers.controls["k"].value = 5
    assert "SettingError" in transfers.status.value
    assert "not finite in row 3" in transfers.status.value


def test_an_answer_for_a_whole_course_takes_less_than_two_seconds():
    torch.manual_seed(0)
    labels = torch.arange(25_000) % 100
    features = torch.randn(100, 128)[labels] + 2 * torch.randn(25_000, 128)
    train, validation = (features[:20_000], labels[:20_000]), (features[20_000:], labels[20_000:])
    choices = {"method": ["knn", "probe"], "k": [10], "C": [0.1]}
    experiment = lab.Experiment.load("transfer_ladder", profile="smoke")
    explorer = TransferExplorer(experiment, train, validation, pd.DataFrame(), choices)
    times = [explorer.milliseconds]
    explorer.controls["method"].value = "probe"
    times.append(explorer.milliseconds)
    assert max(times) < 2_000


def test_wrong_choices_of_a_transfer_are_named(transfers):
    for choices in ({"k": [1]}, {"method": ["knn"], "depth": [1]}):
        with pytest.raises(lab.SettingError, match=r"choices: .*method, and any of"):
            TransferExplorer(transfers.experiment, transfers.features, transfers.validation, transfers.banked, choices)


@pytest.fixture
def softened():
    torch.manual_seed(0)
    images, logits = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8), 5 * torch.randn(4, 10)
    names = [f"class {number}" for number in range(10)]
    return TemperatureExplorer(images, logits.argmax(1), logits, names, [0.5, 1, 2, 4, 8], caption="noise")


def test_the_temperature_softens_the_answers(softened):
    drawn, said = picture(softened), softened.status.value
    assert softened.controls["temperature"].value == 1
    softened.controls["temperature"].value = 8
    assert not np.array_equal(drawn, picture(softened))
    assert softened.status.value != said
    expected = (softened.logits / 8).softmax(1).amax(1).mean()
    assert f"{expected:.1%}" in softened.status.value


def test_a_move_of_the_temperature_is_drawn_within_150_milliseconds(softened):
    times = []
    for temperature in (1, 4, 8, 2) * 3:
        softened.controls["temperature"].value = temperature
        times.append(softened.milliseconds)
    assert min(times) < 150


def test_a_temperature_of_nothing_is_named(softened):
    with pytest.raises(lab.SettingError, match="temperatures: 0"):
        TemperatureExplorer(torch.zeros(1, 3, 8, 8), torch.zeros(1).long(), softened.logits[:1], list("ab"), [0, 1])
