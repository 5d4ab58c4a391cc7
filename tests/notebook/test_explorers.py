"""The explorers that answer at once, without a browser."""

import io

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import labutils as lab
from labutils.notebook import explorers
from labutils.notebook.explorers import Explorer, GradientExplorer, TemperatureExplorer, TransferExplorer
from labutils.notebook.explorers import transfer as transfer_module


def picture(explorer):
    return np.asarray(Image.open(io.BytesIO(explorer.picture["png"])).convert("L"))


def test_the_courses_name_for_explorers_is_this():
    assert lab.explorers is explorers
    assert issubclass(lab.explorers.TrainingExplorer, Explorer)


@pytest.fixture
def gradients(digits):
    choices = {
        "depth": [1, 5, 20],
        "width": [16, 64],
        "activation": ["relu", "tanh"],
        "normalization": [None, "batch"],
        "residual": [False, True],
        "residual_scale": [1.0, "depth"],
    }
    return GradientExplorer(digits, choices, start={"depth": 20, "width": 64})


def test_gradients_are_measured_and_drawn_at_once(gradients, digits):
    assert gradients.choice()["depth"] == 20
    before = picture(gradients)
    gradients.choose(residual=True)
    assert not np.array_equal(picture(gradients), before)
    torch.manual_seed(0)
    model = lab.MLP(**gradients.choice())
    expected = lab.probes.activation_gradients(model, gradients.images, gradients.labels)
    assert gradients.profile.equals(expected)
    assert str(lab.probes.rate_per_layer(expected)) in gradients.status
    assert f"{lab.probes.mean_field_rate(model):.4f}" in gradients.status


def test_the_code_does_what_the_gradient_explorer_does(gradients, digits):
    gradients.choose(residual=True)
    names = {"lab": lab, "torch": torch, "data": digits}
    exec(gradients.code, names)
    assert names["profile"].equals(gradients.profile)


def test_where_theory_is_silent_the_explorer_says_so(gradients):
    gradients.choose(activation="tanh", residual=True)
    assert "no rate is known" in gradients.status
    gradients.choose(depth=1)
    assert "<b>no rate</b>" in gradients.status


def test_earlier_profiles_stay_until_reset(gradients):
    for depth in (5, 20, 5, 20, 5, 20):
        gradients.choose(depth=depth)
    assert len(gradients.earlier) == 4
    gradients.press("reset")
    assert not gradients.earlier


def test_a_move_that_fails_shows_in_the_widget(gradients, monkeypatch):
    monkeypatch.setattr("labutils.notebook.explorers.gradients.activation_gradients", lambda *_: 1 / 0)
    drawn = gradients.picture["png"]
    gradients.choose(depth=5)
    assert "ZeroDivisionError" in gradients.status
    assert gradients.picture["png"] == drawn


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
    return explorer


def test_a_head_is_found_as_soon_as_it_is_chosen(transfers):
    ((label, first),) = transfers.found.items()
    assert label == "knn, k 1"
    assert first == lab.knn(transfers.features, transfers.validation, k=1)["top1"]
    assert transfers.enabled == ["reset"]  # there is nothing to train
    before = picture(transfers)
    transfers.choose(k=20)
    assert transfers.found["knn, k 20"] == lab.knn(transfers.features, transfers.validation, k=20)["top1"]
    assert "600 training images" in transfers.status
    assert not np.array_equal(before, picture(transfers))
    transfers.choose(method="probe")
    assert (
        transfers.found["probe, C 0.001"] == lab.linear_probe(transfers.features, transfers.validation, C=0.001)["top1"]
    )


def test_fine_tuning_comes_from_the_bank_and_only_its_setting_can_be_moved(transfers):
    transfers.choose(method="fine_tuning")
    assert transfers.found["fine-tuning, stages 1 (bank, n = 2)"] == pytest.approx(0.55)
    assert "55.00% ± 7.07%" in transfers.status
    assert "n = 2" in transfers.status
    assert transfers.unused == ["k", "C"]
    assert transfers.enabled == ["train", "reset"]
    transfers.choose(stages=-1)
    assert transfers.found["fine-tuning, stages -1 (bank, n = 2)"] == pytest.approx(0.75)
    transfers.curves["fine-tuning, stages 1"] = (pd.DataFrame(), "")  # as its training leaves it
    transfers.press("reset")
    assert list(transfers.found) == ["fine-tuning, stages -1 (bank, n = 2)"]
    assert not transfers.curves


def test_an_answer_that_fails_says_so_in_the_explorer(transfers):
    transfers.features[0][3, 3] = float("nan")
    transfers.choose(k=5)
    assert "SettingError" in transfers.status
    assert "not finite in row 3" in transfers.status


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
    drawn, said = picture(softened), softened.status
    assert softened.choice()["temperature"] == 1
    softened.choose(temperature=8)
    assert not np.array_equal(drawn, picture(softened))
    assert softened.status != said
    expected = (softened.logits / 8).softmax(1).amax(1).mean()
    assert f"{expected:.1%}" in softened.status


def test_a_temperature_of_nothing_is_named(softened):
    with pytest.raises(lab.SettingError, match="temperatures: 0"):
        TemperatureExplorer(torch.zeros(1, 3, 8, 8), torch.zeros(1).long(), softened.logits[:1], list("ab"), [0, 1])


def test_a_head_is_found_from_some_of_the_features(transfers, monkeypatch):
    monkeypatch.setattr(transfer_module, "EXPLORED_FEATURES", 100)
    whole = (torch.randn(600, 8), torch.arange(600) % 6)
    explorer = TransferExplorer(transfers.experiment, whole, transfers.validation, pd.DataFrame(), {"method": ["knn"]})
    assert "with 100 training images" in explorer.status


def test_a_stopped_fine_tuning_in_the_bank_is_named_and_not_averaged(transfers):
    transfers.banked = transfers.banked.assign(run=list("abcd"))
    transfers.banked.loc[1, "validation_top1"] = float("nan")
    transfers.choose(method="fine_tuning")
    assert "missing: b" in transfers.status
    assert not any("fine-tuning" in label for label in transfers.found)


def test_a_fine_tuning_that_was_stopped_is_drawn_as_such(transfers):
    row = {"epoch": 1, "train_loss": 1.0, "train_accuracy": 0.5, "validation_loss": 1.0, "validation_accuracy": 0.4}
    history = lab.History([row])
    history.interrupted = True
    metrics = {"validation_top1": 0.4, "parameters": 3, "data": "some", "source": "builtin"}
    transfers.show_run("fine-tuning", lab.Run(transfers.experiment, history, metrics, None, lambda: None))
    assert transfers.found["fine-tuning (stopped)"] == 0.4
    assert "stopped early by you" in transfers.status


def test_reset_takes_the_temperature_back_to_where_it_started(softened):
    softened.choose(temperature=8)
    softened.press("reset")
    assert softened.choice()["temperature"] == 1


def test_an_explorer_whose_first_answer_fails_shows_the_error_where_it_has_no_kernel_too(digits):
    explorer = GradientExplorer(digits, {"depth": [1, 5]})  # MLP has no default for its width
    assert "TypeError" in explorer.status
    assert "TypeError" in explorer.stand_in_bundle()["text/html"]
