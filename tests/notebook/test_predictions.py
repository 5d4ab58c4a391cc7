"""Predictions, how they are kept, drawn and summed up; without a browser."""

import json
import re
import types
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import labutils as lab
from labutils.errors import SettingError, UnknownSetting
from labutils.notebook import record
from labutils.notebook.predictions import PREDICTION, notebook, question

RESULTS = pd.DataFrame(
    {"depth": [1, 10, 40], "test_top1": [0.97, 0.95, 0.4], "data": "digits", "source": "builtin", "epochs": 1}
).assign(processor="an abacus", torch="2.0")
LINES = {"plain": {}}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LABUTILS_ANSWERS", str(tmp_path / "answers"))
    monkeypatch.setattr(record, "opened", [])
    return tmp_path / "answers"


def opened(name="01"):
    """A notebook with a question of each kind, as after a restart of its kernel."""
    predict = lab.predictions.Notebook(name)
    predict.number("floor", "How often is the best <constant> right?", unit="%", low=0, high=100)
    predict.choice("deeper", "How many times the parameters?", ["1 times", "4 times", "40 times"])
    predict.curve("accuracy", "Which accuracy?", at={"depth": [1, 10, 40]}, low=0, high=100, unit="%")
    predict.curve("norms", "Which norm?", at={"layer": [1, 20]}, low=0, high=1)
    return predict


ANSWERS = {"floor": [10.0], "deeper": ["4 times"], "accuracy": [90, 80.5, 11], "norms": [0.3, 0.1]}
VALUES = {"floor": 10.0, "deeper": "4 times", "accuracy": [90, 80.5, 11], "norms": [0.3, 0.1]}


def answer(predict, name, answers):
    """Answer a question as the browser does, control by control."""
    for place, one in enumerate(answers):
        predict.question(name).take(place, one)


@pytest.fixture
def predict(folder):
    return opened()


@pytest.fixture
def answered(predict):
    for name, answers in ANSWERS.items():
        answer(predict, name, answers)
    return predict


def test_what_is_not_answered_is_none_and_stops_nothing(predict):
    assert [predict[name] for name in VALUES] == [None] * 4
    figure = lab.plots.accuracy_by_depth(RESULTS, LINES, metric="test_top1")
    lines = len(figure.axes[0].lines)
    for name in VALUES:
        assert predict.draw(name, figure) is figure
    assert len(figure.axes[0].lines) == lines
    assert repr(predict.scorecard()).splitlines()[:2] == [
        "Predictions made: 0 of 4. Checks passed: 0 of 0.",
        "- How often is the best <constant> right? You said: –; measured: –",
    ]


def test_the_saved_notebook_says_what_was_asked_and_answered(predict, capsys):
    asked = predict.question("accuracy")
    assert repr(asked) == (
        "Prediction asked: Which accuracy? (a number from 0 to 100 % at depth 1, 10, 40). No prediction so far."
    )
    assert asked.stand_in_bundle()[PREDICTION] == {"notebook": "01", "name": "accuracy", "value": None}
    answer(predict, "accuracy", ANSWERS["accuracy"])
    assert asked.stand_in_bundle()[PREDICTION]["value"] == VALUES["accuracy"]
    assert "Your prediction: 90 % at 1, 80.5 % at 10, 11 % at 40." in asked.stand_in_bundle()["text/html"]
    assert "&lt;constant&gt;" in predict.question("floor").stand_in_bundle()["text/html"]
    predict.number("again", "Once more?", low=0, high=1)
    assert capsys.readouterr().out.startswith("Prediction asked: Once more?")


def test_answers_outlive_the_kernel_each_in_its_notebook(answered, folder):
    again = opened()
    assert {name: again[name] for name in VALUES} == VALUES
    assert {name: again.question(name).answers for name in ANSWERS} == ANSWERS
    assert opened("02")["floor"] is None
    assert sorted(path.name for path in folder.iterdir()) == ["01.json", "02.json"]


@pytest.mark.parametrize(
    ("name", "answers", "said"),
    [
        ("floor", [100.1], "from 0 to 100 %"),
        ("floor", [None], "once everything is set"),
        ("floor", ["<b>"], "from|finite"),
        ("deeper", ["two times"], "'40 times'"),
        ("accuracy", [90, None, 11], "once everything is set"),
        ("accuracy", [90, 1000, 11], "from 0 to 100 %"),
    ],
)
def test_what_can_not_be_predicted_is_not_kept(answered, name, answers, said):
    answer(answered, name, answers)
    assert answered[name] is None
    assert re.search(said, answered.question(name).said)
    answer(answered, name, ANSWERS[name])
    assert answered.question(name).said == "Kept."


def test_an_answer_to_what_is_no_longer_offered_is_none(answered):
    answered.choice("deeper", "How many times the parameters?", ["2 times", "3 times"])
    assert answered["deeper"] is None


def test_the_scorecard_compares_in_the_units_asked(answered):
    answered.measured("floor", np.float64(11.35))
    answered.measured("deeper", "40 times")
    answered.measured("accuracy", pd.Series([96, 80.5, 41]))
    answered.measured("norms", [0.1, 0.1])
    text = repr(answered.scorecard())
    assert "Predictions made: 4 of 4." in text
    assert "You said: 10 %; measured: 11.35 %; off by 1.35 points" in text
    assert "You said: 4 times; measured: 40 times; wrong" in text
    assert "measured: 96 % at 1, 80.5 % at 10, 41 % at 40; off by 12 points on average" in text
    assert "off by 0.1 on average" in text
    assert "<td" in answered.scorecard()._repr_html_()
    assert "&lt;constant&gt;" in answered.scorecard()._repr_html_()


def test_an_answer_after_the_measurement_is_marked(predict):
    predict.measured("floor", 11.35)
    answer(predict, "floor", [11])
    assert "You said: 11 % (after the measurement)" in repr(predict.scorecard())
    answer(predict, "deeper", ["1 times"])
    predict.measured("deeper", "1 times")
    assert "You said: 1 times; measured: 1 times; right" in repr(predict.scorecard())


def test_what_an_earlier_edition_measured_is_left_out(answered, folder):
    answered.measured("accuracy", [96, 80.5, 41])
    kept = json.loads((folder / "01.json").read_text())
    kept["predictions"]["accuracy"]["measured"] = [96, 80.5]
    (folder / "01.json").write_text(json.dumps(kept))
    assert "Which accuracy? You said: 90 % at 1, 80.5 % at 10, 11 % at 40; measured: –" in repr(opened().scorecard())


def test_an_error_that_is_no_text_is_recorded(predict, folder):
    def fails(labels):
        raise ValueError("\ud800")

    assert not lab.exercises.check_floor(fails)
    assert "ValueError" in json.loads((folder / "01.json").read_text())["checks"]["check_floor"]["message"]


def test_a_prediction_is_drawn_beside_what_was_measured(answered):
    figure = lab.plots.accuracy_by_depth(RESULTS, LINES, metric="test_top1")
    figure.axes[0].set_ylim(0.5, None)
    answered.draw("accuracy", figure)
    answered.draw("floor", figure, label="your floor")
    answered.draw("deeper", figure)
    curve, level = figure.axes[0].lines[-2:]
    assert list(curve.get_xdata()) == [1, 10, 40]
    assert curve.get_ydata() == pytest.approx([0.9, 0.805, 0.11])
    assert level.get_ydata() == pytest.approx([0.1, 0.1])
    assert figure.axes[0].get_ylim()[0] <= 0.1
    assert f"{notebook.LABEL} from" in figure.alt
    figure.drawn()
    assert {text.get_text() for text in figure.axes[0].texts} == {"plain", notebook.LABEL, "your floor"}
    plain = lab.plots.Chart()
    plain.subplots()
    answered.draw("accuracy", plain)
    assert plain.axes[0].lines[0].get_ydata() == pytest.approx([90, 80.5, 11])


def test_the_last_verdict_of_each_check_counts_unless_a_solution_gave_it(predict, monkeypatch):
    lab.exercises.check_floor(None)
    lab.exercises.check_floor(lambda labels: labels.bincount().max() / len(labels))
    lab.exercises.check_parameters(lambda depth, width: 3)
    shell = types.SimpleNamespace(user_ns={"In": ["", "# Solution. It is\nfloor = 0"]})
    monkeypatch.setattr(record, "get_ipython", lambda: shell)
    assert lab.exercises.check_floor(lambda labels: 0).right is False
    shell.user_ns["In"].append("lab.exercises.check_parameters(parameters)")
    summary, *lines = repr(predict.scorecard()).splitlines()
    assert "Checks passed: 1 of 2." in summary
    assert lines[-2].startswith("✓ floor: ")
    assert lines[-1].startswith("✗ parameters: depth 1")


def test_minutes_are_those_of_work_from_the_first_run_on(folder, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(record, "time", types.SimpleNamespace(time=lambda: now[0]))
    predict = opened()
    for now[0] in (600, 600 + record.PAUSE_S + 1, 600 + record.PAUSE_S + 61):
        answer(predict, "floor", [now[0] % 100])
    assert "Minutes of work: 11." in repr(predict.scorecard())
    now[0] += 120
    assert "Minutes of work: 13." in repr(opened().scorecard())


def test_a_file_that_cannot_be_read_is_set_aside(answered, folder):
    for damaged in ("{", "[1]", '{"format": 0}'):
        (folder / "01.json").write_text(damaged)
        with pytest.warns(UserWarning, match="is moved to"):
            assert opened()["floor"] is None
        assert (folder / "01.unreadable").read_text() == damaged
        assert json.loads((folder / "01.json").read_text())["checks"] == {}


def test_where_nothing_can_be_written_answers_last_as_long_as_the_kernel(folder):
    folder.write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="only until the kernel ends"):
        predict = opened()
    answer(predict, "floor", [10])
    assert predict["floor"] == 10


@pytest.mark.parametrize(
    ("ask", "setting"),
    [
        (lambda predict: predict.number("x", "?", low=1, high=1), "high"),
        (lambda predict: predict.number("x", "?", low=None, high=1), "low"),
        (lambda predict: predict.choice("x", "?", ["one"]), "options"),
        (lambda predict: predict.choice("x", "?", ["one", "one"]), "options"),
        (lambda predict: predict.curve("x", "?", at={"depth": [2, 1]}, low=0, high=1), "at.depth"),
        (lambda predict: predict.curve("x", "?", at={}, low=0, high=1), "at"),
        (lambda predict: predict.curve("x", "?", at={"depth": [1, 2]}, low=1, high=1), "high"),
        (lambda predict: predict.measured("floor", float("nan")), "floor"),
        (lambda predict: predict.measured("accuracy", [1, 2]), "accuracy"),
        (lambda predict: predict.measured("deeper", "twice"), "deeper"),
        (lambda predict: lab.predictions.Notebook("../01"), "notebook"),
    ],
)
def test_a_wrong_argument_is_named(predict, ask, setting):
    with pytest.raises(SettingError) as error:
        ask(predict)
    assert error.value.setting == setting


def test_a_name_that_was_not_asked_is_an_error(predict):
    for use in (predict.__getitem__, lambda name: predict.measured(name, 1), lambda name: predict.draw(name, None)):
        with pytest.raises(UnknownSetting, match="did you mean floor"):
            use("flor")


def test_the_browser_has_a_control_for_each_kind(predict):
    script = Path(question.__file__).with_name("question.js").read_text()
    known = set(re.findall(r"(\w+): make\w+", re.search(r"CONTROLS = {(.*?)}", script).group(1)))
    assert {field["control"] for asked in predict.questions.values() for field in asked.fields} == known
