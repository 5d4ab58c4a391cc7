"""What a check says of an answer, and how it reads one: whatever a student gives, the result is a verdict."""

import functools
import itertools
import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import torch

from labutils.notebook.record import recorded
from labutils.training.numerics import seeded

LONGEST_SHOWN = 100  # characters of an answer in a verdict
UNANSWERED = "no answer so far"
SEED = 1_000  # of what answers draw at random; not a seed that a check draws its own numbers from
ARRAYS = (torch.Tensor, np.ndarray, np.generic, pd.Series)


@dataclass(frozen=True)
class Verdict:
    """What a check found; true when the answer is right.

    Attributes:
        right: whether it is.
        message: why, or the first thing that is wrong.
        answer: what was checked; None where there is none so far.
    """

    right: bool
    message: str
    answer: object = field(default=None, repr=False, compare=False)

    def __bool__(self) -> bool:
        return self.right

    def __repr__(self) -> str:
        return f"{'✓ right' if self.right else '✗ not yet'}: {self.message}"

    def or_else(self, ours: object, *, anyway: bool = False) -> object:
        """The answer if it is right, else what stands in for it, so that a notebook runs to its end; says loudly which.

        Args:
            ours: labutils' or PyTorch's own in the form of the answer.
            anyway: take an answer that is wrong, too, to see what it does. Where there is none, ours stands in.
        """
        print(self)
        if self.right:
            return self.answer
        if anyway and self.answer is not None:
            print(">>> WRONG, AND USED ANYWAY: what follows shows what your answer does. <<<")
            return self.answer
        name = getattr(ours, "__name__", type(ours).__name__)
        print(f">>> NOT SOLVED YET: a ready-made {name} STANDS IN for yours, and what follows shows that one. <<<")
        return ours


class Rejected(Exception):
    """An answer is wrong; the message says why."""


class Unanswered(Rejected):
    """There is no answer so far: the stub is as it was handed out."""


def check(judge: Callable[..., Verdict]) -> Callable[..., Verdict]:
    """Make a check of a function that says why an answer is right, and raises Rejected where it is wrong.

    Whatever random numbers it draws, and whatever the answer does to torch's random state or to its gradient mode, both
    are afterwards as they were before; and they do not matter to the verdict.
    """

    @recorded
    @functools.wraps(judge)
    def checked(answer: object, *arguments: object, **options: object) -> Verdict:
        if answer is None or answer is ...:
            return Verdict(False, UNANSWERED)
        try:
            with seeded(SEED, torch.device("cpu")), torch.enable_grad():
                return replace(judge(answer, *arguments, **options), answer=answer)
        except Unanswered:
            return Verdict(False, UNANSWERED)
        except Rejected as reason:
            return Verdict(False, str(reason), answer)

    return checked


def call(answer: object, *arguments: object, **options: object) -> object:
    """What a student's function returns for copies of the tensors among its arguments, which it may change.

    Raises:
        Unanswered: it stopped with a bare NotImplementedError, as stubs do.
        Rejected: it is no function, or it stopped with whatever other error, SystemExit among them.
    """
    if not callable(answer):
        raise Rejected(f"a function is expected, not {shown(answer)}")
    copies = [argument.clone() if isinstance(argument, torch.Tensor) else argument for argument in arguments]
    try:
        return answer(*copies, **options)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a student's code may end in any way
        if isinstance(error, NotImplementedError) and not error.args:
            raise Unanswered from None
        raise Rejected(f"your function stopped with {type(error).__name__}: {shown(error, str)}") from None


def read_number(given: object) -> float:
    """An answer as a number: one of Python's or NumPy's, or a tensor, array or series of one element.

    Raises:
        Rejected: it is none.
    """
    try:
        plain = given.item() if isinstance(given, ARRAYS) else given
        if isinstance(plain, numbers.Number):
            return float(plain)
    except OverflowError:  # a whole number that no float holds
        return math.inf
    except Exception:  # several elements, a complex number, a tensor without memory
        pass
    raise Rejected(f"a number is expected, not {shown(given)}")


def check_plain(given: object) -> None:
    """Raise Rejected where a right number would stop what computes with it: it hangs on a graph, or is an array."""
    if getattr(given, "requires_grad", False):
        raise Rejected("the right number, but it holds on to the graph that it came from: give it with .item()")
    if getattr(given, "ndim", 0):
        raise Rejected("the right number, but as an array of one: give it with .item()")


def read_numbers(given: object, count: int, names: str) -> list[float]:
    """An answer as so many numbers: a tuple, a list, a tensor, whatever gives them one after the other.

    Raises:
        Rejected: it gives others; `names` says what was expected.
    """
    try:
        values = [read_number(value) for value in call(lambda: list(itertools.islice(given, count + 1)))]
    except Rejected:
        values = []
    if len(values) != count:
        raise Rejected(f"{names} is expected, not {shown(given)}")
    return values


def read_tensor(given: object, shape: tuple[int, ...], names: str) -> torch.Tensor:
    """An answer as a float64 tensor of a shape: a tensor, an array, or nested lists of numbers.

    Raises:
        Rejected: it has another shape or is none; `names` says what was expected.
    """
    try:
        tensor = as_tensor(given)
        found = tuple(tensor.shape)
    except Exception:
        raise Rejected(f"{names} of the shape {shape} is expected, not {shown(given)}") from None
    if found != shape:
        raise Rejected(f"{names} of the shape {shape} is expected, yours has {found}")
    return tensor


def as_tensor(given: object) -> torch.Tensor:
    """Anything that holds numbers as a float64 tensor; of anything else, one of many errors."""
    if isinstance(given, list | tuple):
        return torch.stack([as_tensor(part) for part in given])
    array = np.array(given) if isinstance(given, np.ndarray | pd.Series | pd.DataFrame) else given
    tensor = torch.as_tensor(array).detach().cpu()
    if tensor.is_complex():
        raise TypeError("complex numbers")
    return tensor.to_dense().double()


def shown(given: object, form: Callable[[object], str] = repr) -> str:
    """An answer in one short line; its own repr may fail."""
    try:
        text = " ".join(form(given).split())
    except Exception:
        text = f"an object of the type {type(given).__name__}"
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"
