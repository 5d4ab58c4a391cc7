"""Learning from a trained network's soft answers as well as from labels."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  the field's own abbreviation

from labutils.data.loading import ImageData
from labutils.errors import SettingError, check_finite, check_flag, check_number, check_text
from labutils.methods.features import extract_logits
from labutils.methods.pretrained import load_pretrained
from labutils.training.callbacks import Callback, State
from labutils.training.numerics import autocast, prepare
from labutils.training.settings import Training
from labutils.training.stop_button import phase

NO_LABEL = -(2**31)  # PyTorch leaves out labels of -100 unless told otherwise


@dataclass(frozen=True)
class Distillation:
    """From whom a network learns beside the labels, and how much.

    Args:
        teacher: a trained network of the course, such as distillation_teacher; None learns from labels alone.
        temperature: by which both networks' logits are divided, above 0; the higher, the softer the answers.
        alpha: weight of the teacher's answers, from 0 (labels alone) to 1 (no labels).
        consistent: whether the teacher sees each batch as the student does, crops, flips and all (Beyer et al. 2022,
            "Knowledge distillation: a good teacher is patient and consistent"); otherwise its answers for the
            training images as they are, found once, serve every epoch.
        shuffled: whether each answer's logits of the wrong classes change places at random, another order for each
            image. A control: such answers are as sure and as soft as the teacher's, but say nothing of which classes
            are alike.

    Raises:
        SettingError: an argument that is not allowed.
    """

    teacher: str | None = None
    temperature: float = 4.0
    alpha: float = 0.9
    consistent: bool = False
    shuffled: bool = False

    def __post_init__(self):
        check_text("teacher", self.teacher, optional=True)
        check_distillation(self.temperature, self.alpha)
        check_flag("consistent", self.consistent)
        check_flag("shuffled", self.shuffled)
        if self.shuffled and self.consistent:
            raise SettingError("shuffled", True, "false beside consistent; only answers found beforehand are shuffled")


def distillation_loss(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    temperature: float,
    alpha: float,
) -> torch.Tensor:
    """(1 - alpha) times the cross-entropy plus alpha times T^2 times the divergence of the student from the teacher.

    Hinton, Vinyals & Dean 2015, "Distilling the knowledge in a neural network". The divergence is KL(teacher ||
    student), both softened by the temperature T. Its gradient shrinks as 1 / T^2; the factor T^2 makes up for that, so
    that alpha means the same at every temperature. For T towards infinity the second part matches the two networks'
    centred logits by their mean squared difference.

    Args:
        student_logits, teacher_logits: (B, classes).
        labels: (B,) int64.
        temperature: T, above 0.
        alpha: from 0 to 1.

    Returns:
        The mean over the batch, in nats.

    Raises:
        SettingError: an argument that is not allowed, logits of other shapes, or a label that no class has.
    """
    check_distillation(temperature, alpha)
    if teacher_logits.shape != student_logits.shape:
        raise SettingError(
            "teacher_logits", tuple(teacher_logits.shape), f"{tuple(student_logits.shape)}, as the student's"
        )
    student, teacher = student_logits.float(), teacher_logits.float()
    soft = F.kl_div(
        F.log_softmax(student / temperature, dim=1),
        F.log_softmax(teacher / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )
    try:
        hard = F.cross_entropy(student, labels, ignore_index=NO_LABEL)
    except IndexError as error:  # to look at the labels beforehand would make a GPU wait at each step
        allowed = f"0 to {student.shape[1] - 1}, of {student.shape[1]} classes"
        raise SettingError("labels", f"{labels.min().item()} to {labels.max().item()}", allowed) from error
    return (1 - alpha) * hard + alpha * temperature**2 * soft


class Teacher(Callback):
    """Gives a student something to learn from beside the labels; `loss` is what `fit` is to minimise with it.

    Args:
        answer: gives logits (B, classes) for a batch, from its images (B, C, H, W) as the student sees them and their
            indices in the training split (B,).
        distillation: the temperature, and the teacher's weight.
    """

    def __init__(self, answer: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], distillation: Distillation):
        self.answer, self.distillation = answer, distillation

    def before_step(self, state: State) -> None:
        self.logits = self.answer(state.images, state.indices)

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """As `distillation_loss`, of the batch that the teacher has just seen."""
        settings = {"temperature": self.distillation.temperature, "alpha": self.distillation.alpha}
        return distillation_loss(logits, self.logits, labels, **settings)


def load_teacher(
    distillation: Distillation, data: ImageData, training: Training, *, cache: Path | None = None
) -> Teacher:
    """The teacher that a distillation names.

    Args:
        distillation: with a teacher.
        data: what the student learns from.
        training: of the student.
        cache: a folder in which the teacher's answers are kept, and looked for first.

    Raises:
        SettingError: a teacher of other classes or images, or label smoothing beside it.
        CheckpointError: the teacher is damaged.
    """
    if training.label_smoothing:
        raise SettingError("label_smoothing", training.label_smoothing, "0 beside a teacher, whose labels are soft")
    network, record = load_pretrained(distillation.teacher)
    if tuple(record["classes"]) != tuple(data.classes) or tuple(record["image_shape"]) != data.image_shape:
        raise SettingError(
            "teacher", distillation.teacher, f"a network for {data.title}, not for {record['metrics']['data']}"
        )
    if distillation.consistent:
        return Teacher(consistent_answer(network, data, precision=training.precision), distillation)
    shuffle_seed = training.seed if distillation.shuffled else None
    answer = cached_answer(network, data, precision=training.precision, cache=cache, shuffle_seed=shuffle_seed)
    return Teacher(answer, distillation)


def cached_answer(
    network: nn.Module,
    data: ImageData,
    *,
    precision: str = "auto",
    cache: Path | None = None,
    shuffle_seed: int | None = None,
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """A teacher's answers for the training images as they are, found once and then looked up.

    With a seed for it the wrong classes' logits are shuffled first.
    """
    with phase("teacher's answers"):
        logits, labels = extract_logits(network, "train", data, precision=precision, cache=cache)
    check_finite("teacher_logits", logits)
    if shuffle_seed is not None:
        logits = shuffle_wrong_classes(logits, labels, seed=shuffle_seed)
    return lambda images, indices: logits[indices]


def shuffle_wrong_classes(logits: torch.Tensor, labels: torch.Tensor, *, seed: int) -> torch.Tensor:
    """Logits (N, classes) in which those of all classes but the label's (N,) have changed places at random."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(logits.shape, generator=generator).to(logits.device)
    own = labels[:, None]
    # The label's class sorts last in both orders, so that it stays where it is.
    places = order.scatter(1, own, 2.0).argsort(dim=1)
    classes = torch.zeros_like(order).scatter(1, own, 2.0).argsort(dim=1, stable=True)
    return logits.scatter(1, places, logits.gather(1, classes))


def consistent_answer(
    network: nn.Module, data: ImageData, *, precision: str = "auto"
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """A teacher's answers for each batch as the student sees it, which are not worth keeping."""
    prepare(network, data.device)
    network.eval()

    @torch.no_grad()
    def answer(images: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        with autocast(network, data.device, precision):
            return network(images).float()

    return answer


def check_distillation(temperature: float, alpha: float) -> None:
    """Raise SettingError unless a distillation can have these settings."""
    check_number("temperature", temperature, 0, open_ends="low")
    check_number("alpha", alpha, 0, 1)


def mean_entropy(logits: torch.Tensor, temperature: float) -> float:
    """The mean entropy of answers (N, classes) softened by a temperature, in nats."""
    return torch.distributions.Categorical(logits=logits.cpu().double() / temperature).entropy().mean().item()
