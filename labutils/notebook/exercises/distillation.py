"""The exercises of notebook 05."""

import math
from collections.abc import Callable

import torch

from labutils.methods.distillation import distillation_loss, mean_entropy
from labutils.methods.probes import calibration_error
from labutils.notebook.exercises.verdict import Rejected, Verdict, call, check, read_number
from labutils.training.device import seeded

LOSS_TOLERANCE = 1e-3  # relative
ENTROPY_TOLERANCE = 0.02  # nats
COLDEST = 1e-300  # temperature by which logits can be divided


@check
def check_distillation_loss(answer: Callable[..., torch.Tensor] | None) -> Verdict:
    """Notebook 05, exercise 1: the loss of distillation.

    Args:
        answer: of the student's logits (B, classes), the teacher's, labels (B,), temperature and alpha.
    """
    with seeded(0, torch.device("cpu")):
        student, teacher, labels = 2 * torch.randn(8, 5), 3 * torch.randn(8, 5), torch.randint(5, (8,))
    for temperature, alpha in ((1.0, 0.0), (1.0, 1.0), (4.0, 1.0), (3.0, 0.7)):
        given = read_number(call(answer, student, teacher, labels, temperature, alpha))
        expected = distillation_loss(student, teacher, labels, temperature=temperature, alpha=alpha).item()
        if not math.isclose(given, expected, rel_tol=LOSS_TOLERANCE):
            case = f"temperature {temperature:g}, alpha {alpha:g}"
            raise Rejected(f"{case}: {expected:.4f} is right, yours: {given:.4f}")
    return Verdict(True, "labels alone, the teacher alone, hot and cold: each as it should be")


@check
def check_temperature(answer: Callable[[torch.Tensor, float], float] | None) -> Verdict:
    """Notebook 05, exercise 2: the temperature at which soft answers have a given mean entropy.

    Args:
        answer: of logits (N, classes) and an entropy in nats.
    """
    with seeded(0, torch.device("cpu")):
        logits = 6 * torch.randn(200, 10)
    for wanted in (0.5, 1.0, 2.0):
        temperature = read_number(call(answer, logits, wanted))
        if not temperature > COLDEST:
            raise Rejected(f"for {wanted} nats a temperature above 0 is expected, not {temperature:g}")
        found = mean_entropy(logits, temperature)
        if not math.isclose(found, wanted, abs_tol=ENTROPY_TOLERANCE):
            raise Rejected(f"at the temperature {temperature:.3g} the entropy is {found:.2f} nats, not {wanted}")
    return Verdict(True, "at your temperatures the answers are as soft as was asked for")


@check
def check_calibration_error(answer: Callable[[torch.Tensor, torch.Tensor, int], float] | None) -> Verdict:
    """Notebook 05, exercise 3: the expected calibration error.

    Args:
        answer: of logits (N, classes), labels (N,) and the number of bins.
    """
    with seeded(0, torch.device("cpu")):
        logits = 2 * torch.randn(500, 4)
        # right as often when it is unsure as when it is sure: the bins err to either side
        labels = torch.where(torch.rand(500) < 0.6, logits.argmax(1), torch.randint(4, (500,)))
    for bins in (1, 5, 15):
        given = read_number(call(answer, logits, labels, bins))
        expected = calibration_error(logits, labels, bins=bins)
        if not math.isclose(given, expected, rel_tol=LOSS_TOLERANCE):
            raise Rejected(f"with {bins} bins the error is {expected:.4f}, yours: {given:.4f}")
    return Verdict(True, "bins without images count for nothing, and the others by their share")
