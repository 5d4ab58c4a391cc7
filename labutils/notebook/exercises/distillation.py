"""What notebook 05 has its readers build, and its exercises."""

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  the field's own abbreviation

from labutils.methods.distillation import distillation_loss, mean_entropy
from labutils.methods.probes import calibration, calibration_error
from labutils.notebook.exercises import ours
from labutils.notebook.exercises.comparing import cases, check_gradient, compare
from labutils.notebook.exercises.verdict import Rejected, Verdict, call, check, check_plain, read_number, shown
from labutils.training.numerics import seeded

LOSS_TOLERANCE = 1e-3  # relative
ENTROPY_TOLERANCE = 0.02  # nats
TEMPERATURE_TOLERANCE = 0.02  # relative
NEAR = 0.1  # relative, to which a temperature is near the best one
COLDEST = 1e-300  # temperature by which logits can be divided


@check
def check_distillation_loss(answer: Callable[..., torch.Tensor] | None) -> Verdict:
    """Notebook 05, to build: the loss of distillation.

    Args:
        answer: of the student's logits (B, classes), the teacher's, labels (B,), temperature and alpha, the last two by
            their names; gives a scalar tensor.
    """
    for draw, (temperature, alpha) in zip(cases(4), ((1.0, 0.0), (1.0, 1.0), (4.0, 1.0), (3.0, 0.7)), strict=True):
        count, classes = draw.randint(7, 9), draw.randint(4, 6)
        student, teacher = (2 * torch.randn(count, classes)).requires_grad_(), 3 * torch.randn(count, classes)
        labels, settings = torch.randint(classes, (count,)), {"temperature": temperature, "alpha": alpha}
        loss = call(answer, student, teacher, labels, **settings)
        expected = distillation_loss(student, teacher, labels, **settings)
        mistakes = wrong_distillations(student.detach(), teacher, labels, **settings)
        case = f"temperature {temperature:g}, alpha {alpha:g}"
        mistakes = {f"{case}: {message}": wrong for message, wrong in mistakes.items()}
        compare(loss, expected, f"{case}: the loss", mistakes, tolerance=LOSS_TOLERANCE)
        check_gradient(loss, student, torch.autograd.grad(expected, student)[0])
    return Verdict(True, "labels alone, the teacher alone, hot and cold: each as it should be")


def wrong_distillations(
    student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, *, temperature: float, alpha: float
) -> dict[str, torch.Tensor]:
    """What a loss of distillation is that makes a known mistake."""
    p, q = (student / temperature).log_softmax(1), (teacher / temperature).log_softmax(1)
    hard, soft = F.cross_entropy(student, labels), divergence(student / temperature, teacher / temperature)
    swapped, crossed = (p.exp() * (p - q)).sum(1).mean(), -(q.exp() * p).sum(1).mean()
    square, classes = temperature**2, student.shape[1]
    return {
        "the teacher's term lacks the factor T^2": (1 - alpha) * hard + alpha * soft,
        "the teacher's term has the factor T instead of T^2": (1 - alpha) * hard + alpha * temperature * soft,
        "the divergence is the wrong way round: it is KL(teacher || student), weighed by the teacher's answers": (
            (1 - alpha) * hard + alpha * square * swapped
        ),
        "alpha and 1 - alpha are swapped: alpha is the teacher's weight": alpha * hard + (1 - alpha) * square * soft,
        "the labels' term is softened, too: it is taken at T = 1": (
            (1 - alpha) * F.cross_entropy(student / temperature, labels) + alpha * square * soft
        ),
        "the divergence is averaged over the classes as well: sum over them, and average over the images": (
            (1 - alpha) * hard + alpha * square * soft / classes
        ),
        "that is the cross-entropy with the teacher's answers; the divergence takes their entropy away": (
            (1 - alpha) * hard + alpha * square * crossed
        ),
        "the two terms are added without their weights": hard + square * soft,
        "T^2 belongs to the teacher's term alone": square * ((1 - alpha) * hard + alpha * soft),
        "the divergence is summed over the images, too: average over them": (
            (1 - alpha) * hard + alpha * square * len(student) * soft
        ),
        "softmax runs over the images (dim=0); it belongs over the classes": (
            (1 - alpha) * hard + alpha * square * divergence(student / temperature, teacher / temperature, dim=0)
        ),
        "only the student's logits are divided by T; the teacher's are, too": (
            (1 - alpha) * hard + alpha * square * divergence(student / temperature, teacher)
        ),
        "only the teacher's logits are divided by T; the student's are, too": (
            (1 - alpha) * hard + alpha * square * divergence(student, teacher / temperature)
        ),
        "kl_div takes the student's log-probabilities first, not probabilities": (
            (1 - alpha) * hard + alpha * square * (q.exp() * (q - p.exp())).sum(1).mean()
        ),
    }


def divergence(student: torch.Tensor, teacher: torch.Tensor, dim: int = 1) -> torch.Tensor:
    """KL(teacher || student) of logits (B, classes), the mean over the images, with the softmax along `dim`."""
    p, q = student.log_softmax(dim), teacher.log_softmax(dim)
    return (q.exp() * (q - p)).sum(1).mean()


@check
def check_cached_teacher(answer: Callable[..., Callable] | None) -> Verdict:
    """Notebook 05, to build: a teacher that answers once for each image, and is looked up ever after.

    Args:
        answer: of a network, images (N, C, H, W) and the size of a batch; gives a function from indices (B,) to the
            network's logits for these images, (B, classes).
    """
    for draw in cases():
        count, batch_size, classes = draw.randint(17, 23), draw.randint(4, 6), draw.randint(3, 5)
        teacher = nn.Sequential(
            nn.Flatten(), nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, classes)
        )
        images, indices = torch.randn(count, 3, 2, 2), torch.randperm(count)[:7]
        seen: list[tuple[int, bool]] = []
        expected = teacher.eval()(images).detach()
        teacher.train().register_forward_hook(
            lambda net, given, _, seen=seen: seen.append((len(given[0]), net.training))
        )
        answers = call(answer, teacher, images, batch_size)
        if not callable(answers):
            raise Rejected(f"a function of indices is expected, not {shown(answers)}")
        found = call(answers, indices)
        asked = len(seen)
        again = call(answers, torch.arange(count))
        if not seen:
            raise Rejected(
                "the teacher is not asked: call it for each batch, as teacher(batch), not by its forward method"
            )
        if len(seen) > asked:
            raise Rejected("the teacher is asked again for each batch: ask it once, before, and look its answers up")
        if any(training for _, training in seen):
            raise Rejected(
                "the teacher answers in training mode, with dropout and the batch's statistics: eval() first"
            )
        largest = max(size for size, _ in seen)
        if largest > batch_size:
            raise Rejected(f"the teacher sees {largest} images at once, more than a batch of {batch_size}")
        if sum(size for size, _ in seen) != count:
            raise Rejected(f"the teacher sees {sum(size for size, _ in seen)} images, not each of the {count} once")
        if any(getattr(logits, "requires_grad", False) for logits in (found, again)):
            raise Rejected("the answers hold on to the teacher's graph, and its memory: use torch.no_grad()")
        mistakes = {
            "those are the first answers, whatever the indices are": expected[: len(indices)],
            "those are probabilities; logits are expected, which any temperature can soften": expected[indices].softmax(
                1
            ),
        }
        compare(found, expected[indices], "a tensor of logits", mistakes)
        compare(again, expected, "the logits of all images")
    return Verdict(True, "each image's logits, found once, in evaluation mode, and looked up by their indices")


@check
def check_temperature_scaling(answer: Callable[[torch.Tensor, torch.Tensor], float] | None) -> Verdict:
    """Notebook 05, to build: the temperature that mends a network's calibration (Guo et al. 2017).

    Args:
        answer: of logits (N, classes) and labels (N,) of validation images; gives the temperature T above 0 at which
            logits / T have the least cross-entropy.
    """
    for draw, true in zip(cases(), (2.5, 0.6, 1.6), strict=True):
        classes = draw.randint(4, 7)
        logits = 3 * torch.randn(1000, classes)
        labels = torch.multinomial((logits / true).softmax(1), 1).squeeze(1)
        given, best = call(answer, logits, labels), ours.best_temperature(logits, labels)
        found = read_number(given)
        if not COLDEST < found < math.inf:
            raise Rejected(f"a temperature above 0 is expected, not {found:g}")
        if math.isclose(found, best, rel_tol=TEMPERATURE_TOLERANCE):
            check_plain(given)
            continue
        if math.isclose(found, 1 / best, rel_tol=TEMPERATURE_TOLERANCE):
            raise Rejected(f"you give {found:.3f}, by which logits are to be multiplied; T divides them: {best:.3f}")
        if found == 1:
            raise Rejected(f"at T = 1 nothing is mended; T = {best:.3f} has the least cross-entropy")
        if math.isclose(found, best, rel_tol=NEAR):
            raise Rejected(
                f"your T = {found:.3f} is near; the least cross-entropy is at {best:.3f}. Search more finely"
            )
        losses = [F.cross_entropy(logits / by, labels).item() for by in (found, best)]
        raise Rejected(
            f"at your T = {found:.3g} the cross-entropy is {losses[0]:.3f}, and {losses[1]:.3f} at T = {best:.3f}"
        )
    return Verdict(True, "the least cross-entropy, of networks that are too sure and of one that is too unsure")


@check
def check_distillation_gradient(answer: Callable[..., torch.Tensor] | None) -> Verdict:
    """Notebook 05, exercise 1: the gradient of the teacher's term with respect to the student's logits.

    Args:
        answer: of the student's logits (B, classes), the teacher's and the temperature; gives the gradient of the mean
            over the batch of T^2 KL(teacher || student), (B, classes). Compared with autograd.
    """
    for draw, temperature in zip(cases(), (1.0, 3.0, 50.0), strict=True):
        count, classes = draw.randint(4, 8), draw.randint(3, 6)
        student, teacher = (2 * torch.randn(count, classes)).requires_grad_(), 3 * torch.randn(count, classes)
        loss = distillation_loss(
            student, teacher, torch.zeros(count, dtype=torch.int64), temperature=temperature, alpha=1.0
        )
        (expected,) = torch.autograd.grad(loss, student)
        mistakes = {
            "the sign is wrong: where the student says too much, the gradient is above 0": -expected,
            "the loss is a mean over the batch: divide by the number of images": count * expected,
            "you forget T^2": expected / temperature**2,
            "T^2 is right, but the logits were divided by T before the softmax, too: one T cancels": (
                temperature * expected
            ),
            "one factor T is missing": expected / temperature,
            "at this temperature the softmax is to be taken of logits / T": (
                temperature * (student.detach().softmax(1) - teacher.softmax(1)) / count
            ),
            "softmax runs over the images (dim=0); it belongs over the classes": (
                temperature * ((student.detach() / temperature).softmax(0) - (teacher / temperature).softmax(0)) / count
            ),
            "the mean is over the images, not over the classes as well": expected / classes,
        }
        mistakes = {f"T = {temperature:g}: {message}": wrong for message, wrong in mistakes.items()}
        given = call(answer, student.detach(), teacher, temperature)
        compare(given, expected, f"T = {temperature:g}: the gradient", mistakes, tolerance=LOSS_TOLERANCE)
    return Verdict(True, "autograd finds the same, hot and cold")


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
        if math.isclose(given, expected, rel_tol=LOSS_TOLERANCE):
            continue
        table = calibration(logits, labels, bins=bins)
        elsewhere = "the bins are equal parts of the confidences from 0 to 1, not of"
        occurring = (end.item() for end in logits.softmax(1).amax(1).aminmax())
        distances = (table["confidence"] - table["accuracy"]).abs()
        mistakes = {
            "bins that are too sure and too unsure cancel: take each bin's absolute difference": (
                table["share"] @ (table["confidence"] - table["accuracy"])
            ),
            "all bins count alike; each counts by its share of the answers": distances.mean(),
            "all bins count alike, empty ones too; each counts by its share of the answers": distances.sum() / bins,
            "that is the largest of the bins' errors; their mean, by their shares, is asked for": distances.max(),
            "that is in per cent; a share from 0 to 1 is asked for": 100 * expected,
            f"{elsewhere} those that occur": error_in_bins(logits, labels, bins, *occurring),
            f"{elsewhere} those that are possible": error_in_bins(logits, labels, bins, 1 / logits.shape[1], 1.0),
        }
        for message, wrong in mistakes.items():
            if math.isclose(abs(given), abs(wrong), rel_tol=LOSS_TOLERANCE):
                raise Rejected(f"with {bins} bins: {message}")
        raise Rejected(f"with {bins} bins the error is {expected:.4f}, yours: {given:.4f}")
    return Verdict(True, "bins without images count for nothing, and the others by their share")


def error_in_bins(logits: torch.Tensor, labels: torch.Tensor, bins: int, low: float, high: float) -> float:
    """The expected calibration error with bins that span other confidences than 0 to 1."""
    confidence, found = logits.softmax(1).max(1)
    number = ((confidence - low) / (high - low) * bins).long().clamp(0, bins - 1)
    distances = torch.zeros(bins).index_add(0, number, confidence - (found == labels).float())
    return (distances.abs().sum() / len(labels)).item()
