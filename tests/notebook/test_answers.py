"""How the exercises' checks read an answer: in whatever form it comes, and whatever it is."""

import decimal
import fractions
import inspect
import itertools
import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import labutils as lab
from labutils.notebook import exercises
from labutils.notebook.exercises import Verdict
from labutils.notebook.exercises.verdict import Rejected, read_number, read_numbers, read_tensor


class Wordless:
    """What a student's own class may be."""

    def __repr__(self):
        raise RuntimeError("no words")


class Broken(lab.ResNet):
    """A network that can't be used."""

    def forward(self, images):
        raise RuntimeError("no forward pass")


def fails(*arguments):
    raise TypeError("no idea")


def numbers_then_exit():
    yield 1
    raise SystemExit


# Forms of right answers


@pytest.mark.parametrize(
    "form",
    [
        float,
        np.float64,
        np.float32,
        torch.tensor,
        lambda value: torch.tensor([value]),
        lambda value: torch.tensor(value, requires_grad=True),
        lambda value: np.array([[value]]),
        lambda value: pd.Series([value], index=["here"]),
        fractions.Fraction,
        decimal.Decimal,
    ],
)
def test_a_number_counts_in_whatever_form_it_comes(form):
    assert read_number(form(0.5)) == 0.5
    assert exercises.check_floor(lambda labels: form(labels.bincount().max().item() / len(labels)))


@pytest.mark.parametrize("form", [int, float, np.int32, np.int64, torch.tensor, lambda value: np.array([value])])
def test_a_whole_number_counts_in_whatever_form_it_comes(form):
    assert exercises.check_parameters(
        lambda depth, width: form(784 * width + width + (depth - 1) * (width * width + width) + 10 * width + 10)
    )
    assert exercises.check_last_depth(form(3), DEPTHS)


@pytest.mark.parametrize(
    "answer",
    ["1", b"1", None, [1.0], (1,), {1}, 1j, torch.ones(2), torch.ones(0), torch.tensor(1j), torch.ones(1).to("meta"),
     np.array("1"), np.array(None), Wordless(), float, fails, decimal.Decimal("sNaN"), pd.DataFrame({"a": [1.0]})],
)  # fmt: skip
def test_what_is_no_number_is_refused(answer):
    with pytest.raises(Rejected, match="a number is expected"):
        read_number(answer)


def test_a_number_that_no_float_holds_is_infinite():
    assert read_number(10**400) == math.inf
    assert not exercises.check_parameters(lambda depth, width: 10**5000)  # which Python does not even write out


@pytest.mark.parametrize(
    "form",
    [tuple, list, np.array, torch.tensor, pd.Series, iter, lambda pair: [np.int64(number) for number in pair],
     lambda pair: (torch.tensor(number) for number in pair)],
)  # fmt: skip
def test_several_numbers_count_in_whatever_form_they_come(form):
    assert read_numbers(form((2, 8)), 2, "a pair") == [2, 8]
    assert exercises.check_choice_of_model(form((2, 8)), NETS, target=0.95)
    assert exercises.check_convolution_cost(lambda i, o, k, s: form((i * o * k**2, i * o * k**2 * s**2)))


@pytest.mark.parametrize(
    "answer", [3, "28", (1,), (1, 2, 3), itertools.count(), [1, "2"], torch.ones(2, 2), None, numbers_then_exit()]
)
def test_what_is_no_pair_is_refused(answer):
    with pytest.raises(Rejected, match="a pair is expected"):
        read_numbers(answer, 2, "a pair")


@pytest.mark.parametrize(
    "form",
    [
        lambda tensor: tensor,
        lambda tensor: tensor.double().requires_grad_(),
        lambda tensor: tensor.int(),
        lambda tensor: tensor.to_sparse(),
        torch.Tensor.tolist,
        torch.Tensor.numpy,
        list,
        lambda tensor: [row.numpy() for row in tensor],
        lambda tensor: pd.DataFrame(tensor.numpy(), index=["b", "a"]),
    ],
)
def test_a_tensor_counts_in_whatever_form_it_comes(form):
    tensor = torch.arange(6).view(2, 3)
    assert torch.equal(read_tensor(form(tensor), (2, 3), "a tensor"), tensor.double())


@pytest.mark.parametrize(
    "answer",
    [None, 1, "12", [[1, 2], [3]], [None], torch.ones(3, 2), torch.ones(2, 3) * 1j, torch.ones(2, 3).to("meta"),
     np.array([["a"] * 3] * 2), Wordless(), {}],
)  # fmt: skip
def test_what_is_no_tensor_of_the_shape_is_refused(answer):
    with pytest.raises(Rejected, match=r"a tensor of the shape \(2, 3\) is expected"):
        read_tensor(answer, (2, 3), "a tensor")


def test_classes_may_be_a_list():
    def nearest(train, labels, others):
        means = torch.stack([train[labels == number].mean(dim=0) for number in range(5)])
        return torch.cdist(others, means).argmin(dim=1).tolist()

    assert exercises.check_nearest_mean(nearest)


# Any answer at all

NETS = pd.DataFrame(
    {"depth": [1, 2, 1], "width": [8, 8, 32], "parameters": [100, 150, 400], "validation_top1": [0.90, 0.96, 0.97]}
)
DEPTHS = pd.DataFrame({"depth": [1, 2, 3], "validation_top1": [0.9, 0.8, 0.1]})
LABELS = pd.DataFrame(
    [
        {"backbone": backbone, "per_class": count, "test_top1": count / 200 + (backbone != "none") / 20}
        for backbone in ("none", "some")
        for count in (10, 40, 100)
    ]
)
OF_RESULTS = {  # checks whose answer is no function: the results that it is about, and what else the check is told
    "check_choice_of_model": (NETS, {"target": 0.95}),
    "check_last_depth": (DEPTHS, {}),
    "check_labels_saved": (LABELS, {"few": 10}),
}
CHECKS = [name for name in dir(exercises) if name.startswith("check_")]
OF_FUNCTIONS = [name for name in CHECKS if name not in OF_RESULTS]

SHAPES = [(), (0,), (1,), (2,), (300,), (4, 7), (4, 16), (3, 7, 5, 4)]
GARBAGE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.complex_numbers(),
    st.fractions(),
    st.decimals(),
    st.text(),
    st.binary(),
    st.lists(st.one_of(st.integers(), st.floats(), st.text(), st.none()), max_size=4),
    st.tuples(st.floats(), st.floats()),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=3),
    st.builds(torch.full, st.sampled_from(SHAPES), st.floats(width=32)),
    st.builds(np.full, st.sampled_from(SHAPES), st.one_of(st.floats(), st.text(max_size=2), st.none())),
    st.builds(pd.Series, st.lists(st.floats(), max_size=3), dtype=st.just(float)),
    st.sampled_from([Wordless, DEPTHS, torch.nn.Linear(2, 2), lab.ResNet((1, 1, 1, 1), width=1),
                     lab.ResNet((1, 1, 1, 1), width=2, classes=7), Broken((1, 1, 1, 1), width=2, classes=7)]),
)  # fmt: skip
ERRORS = [ValueError("no"), SystemExit(1), RecursionError(), GeneratorExit(), AssertionError(), StopIteration(3)]


def stopping_with(error):
    def answer(*arguments, **options):
        raise error

    return answer


ANSWERS = st.one_of(
    GARBAGE,
    GARBAGE.map(lambda value: lambda *arguments: value),
    GARBAGE.map(lambda value: lambda only: value),
    st.sampled_from(ERRORS).map(stopping_with),
)


def judge(name, answer):
    if name not in OF_RESULTS:
        return getattr(exercises, name)(answer)
    results, options = OF_RESULTS[name]
    return getattr(exercises, name)(answer, results, **options)


@pytest.mark.parametrize("name", CHECKS)
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(answer=ANSWERS)
def test_any_answer_gets_a_verdict(name, answer):
    verdict = judge(name, answer)
    assert isinstance(verdict, Verdict)
    assert isinstance(repr(verdict), str)
    assert name in OF_RESULTS or not verdict  # nothing here answers an exercise that asks for a function


@pytest.mark.parametrize("name", CHECKS)
def test_an_answer_that_can_not_be_shown_gets_a_verdict(name):
    assert not judge(name, Wordless())
    assert not judge(name, lambda *arguments: Wordless())


@pytest.mark.parametrize("temperature", [5e-324, 1e-310, math.inf, -math.inf])
def test_a_temperature_out_of_all_reason_gets_a_verdict(temperature):
    assert not exercises.check_temperature(lambda logits, wanted: temperature)


@pytest.mark.parametrize("name", CHECKS)
def test_none_is_no_answer(name):
    assert judge(name, None) == Verdict(False, "no answer so far")


@pytest.mark.parametrize("name", OF_FUNCTIONS)
def test_whatever_ends_a_function_is_named_but_an_interrupt_goes_through(name):
    assert "SystemExit: 3" in judge(name, stopping_with(SystemExit(3))).message
    with pytest.raises(KeyboardInterrupt):
        judge(name, stopping_with(KeyboardInterrupt()))


@pytest.mark.parametrize("name", CHECKS)
def test_nan_is_never_right(name):
    answers = [math.nan, (math.nan, math.nan)]
    if name in OF_FUNCTIONS:
        answers = [lambda *arguments, value=value: value for value in answers]
    assert not any(judge(name, answer) for answer in answers)


@pytest.mark.parametrize("name", OF_RESULTS)
def test_results_of_a_run_that_is_not_finished_are_refused_by_its_name(name):
    results, options = OF_RESULTS[name]
    figure = results.columns[-1]
    results = results.assign(run=[f"run{number}" for number in range(len(results))])
    results.loc[1, figure] = math.nan
    with pytest.raises(lab.SettingError, match=f"{figure}: 'missing: run1'"):
        getattr(exercises, name)(2, results, **options)


@pytest.mark.parametrize("name", CHECKS)
def test_a_check_says_to_which_exercise_it_belongs(name):
    check = getattr(exercises, name)
    assert check.__doc__.startswith("Notebook 0")
    assert next(iter(inspect.signature(check).parameters)) == "answer"
