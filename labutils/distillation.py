"""Learning from a trained network's soft answers as well as from labels."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  the field's own abbreviation

from labutils.backbones import load_backbone
from labutils.data import ImageData
from labutils.errors import SettingError, check_choice, check_finite, check_number
from labutils.extraction import extract_logits
from labutils.training import Training, autocast, prepare

Teacher = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # of images and their places; gives logits


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

    Raises:
        SettingError: an argument that is not allowed.
    """

    teacher: str | None = None
    temperature: float = 4.0
    alpha: float = 0.9
    consistent: bool = False

    def __post_init__(self):
        check_distillation(self.temperature, self.alpha)
        check_choice("consistent", self.consistent, (True, False))


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
    that alpha means the same at every temperature. The lab that this course replaces left the factor out: at T = 3 its
    teacher spoke a ninth as loud as its alpha said. For T towards infinity the second part matches the two networks'
    centred logits by their mean squared difference.

    Args:
        student_logits, teacher_logits: (B, classes).
        labels: (B,) int64.
        temperature: T, above 0.
        alpha: from 0 to 1.

    Returns:
        The mean over the batch, in nats.

    Raises:
        SettingError: an argument that is not allowed, logits of different classes, or a teacher's that are not finite.
    """
    check_distillation(temperature, alpha)
    if teacher_logits.shape != student_logits.shape:
        raise SettingError(
            "teacher_logits", tuple(teacher_logits.shape), f"{tuple(student_logits.shape)}, as the student's"
        )
    check_finite("teacher_logits", teacher_logits)
    student, teacher = student_logits.float(), teacher_logits.float()
    soft = F.kl_div(
        F.log_softmax(student / temperature, dim=1),
        F.log_softmax(teacher / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )
    return (1 - alpha) * F.cross_entropy(student, labels) + alpha * temperature**2 * soft


def teaching(distillation: Distillation, data: ImageData, training: Training) -> dict[str, Callable]:
    """What `fit` needs to train a student: its loss and its teacher.

    Raises:
        SettingError: a teacher of other classes or images, or label smoothing beside it.
        CheckpointError: the teacher is damaged, or what is kept of its answers is another's.
    """
    if training.label_smoothing:
        raise SettingError("label_smoothing", training.label_smoothing, "0 beside a teacher, whose labels are soft")
    network, record = load_backbone(distillation.teacher)
    if tuple(record["classes"]) != tuple(data.classes) or tuple(record["image_shape"]) != data.image_shape:
        raise SettingError(
            "teacher", distillation.teacher, f"a network for {data.title}, not for {record['metrics']['data']}"
        )

    def loss(logits: torch.Tensor, labels: torch.Tensor, taught: torch.Tensor) -> torch.Tensor:
        return distillation_loss(logits, taught, labels, temperature=distillation.temperature, alpha=distillation.alpha)

    teach = consistent_teacher if distillation.consistent else cached_teacher
    return {"loss": loss, "teacher": teach(network, data, precision=training.precision)}


def cached_teacher(network: nn.Module, data: ImageData, *, precision: str = "auto") -> Teacher:
    """A teacher whose answers for the training images, as they are, are looked up."""
    logits, _ = extract_logits(network, "train", data, precision=precision)
    check_finite("teacher_logits", logits)
    return lambda images, places: logits[places]


def consistent_teacher(network: nn.Module, data: ImageData, *, precision: str = "auto") -> Teacher:
    """A teacher that looks at each batch as the student sees it."""
    prepare(network, data.device)
    return functools.partial(answer, network.eval(), autocast(network, data.device, precision))


@torch.no_grad()
def answer(network: nn.Module, precision: torch.autocast, images: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """A network's logits for a batch."""
    with precision:
        return network(images).float()


def check_distillation(temperature: float, alpha: float) -> None:
    """Raise SettingError unless a distillation can have these settings."""
    check_number("temperature", temperature, 0, open_ends="low")
    check_number("alpha", alpha, 0, 1)


def mean_entropy(logits: torch.Tensor, temperature: float) -> float:
    """The mean entropy of answers (N, classes) softened by a temperature, in nats."""
    return torch.distributions.Categorical(logits=logits.double() / temperature).entropy().mean().item()
