"""How a check builds what a student wrote, and compares what it gives, so that the first thing wrong has a name."""

import random
from collections.abc import Iterator, Mapping

import torch
from torch import nn

from labutils.notebook.exercises.verdict import Rejected, as_tensor, call, read_tensor, shown

TOLERANCE = 1e-4  # of the largest number that is expected


def cases(count: int = 3) -> Iterator[random.Random]:
    """Sources of random sizes, one a seed; torch's own random numbers start from that seed, too."""
    for seed in range(count):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would change a GPU's random state, too
        yield random.Random(seed)


def build(answer: object, *arguments: object, **options: object) -> nn.Module:
    """What a student's class makes.

    Raises:
        Rejected: it is no torch.nn.Module, or could not be made.
    """
    model = call(answer, *arguments, **options)
    if not isinstance(model, nn.Module):
        raise Rejected(f"a torch.nn.Module is expected, not {shown(model)}")
    return model


def tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """A student's module's parameters and buffers by their names, without counts of batches."""
    found = call(lambda: dict(model.state_dict()))
    call(lambda: [tensor.shape for tensor in found.values()])  # a lazy layer's have none
    return {name: tensor for name, tensor in found.items() if not name.endswith("num_batches_tracked")}


@torch.no_grad()
def share_tensors(model: nn.Module, reference: nn.Module, where: str) -> None:
    """Fill a student's module and the one it is compared with, with the same random numbers, by the tensors' names.

    Raises:
        Rejected: the two do not have the same names and shapes.
    """
    given, expected = tensors(model), tensors(reference)
    for name, tensor in expected.items():
        if name not in given:
            raise Rejected(f"{where}: the module has no {name}; it has {', '.join(given) or 'nothing to learn'}")
        if given[name].shape != tensor.shape:
            shapes = f"{tuple(tensor.shape)}, yours {tuple(given[name].shape)}"
            raise Rejected(f"{where}: {name} should have the shape {shapes}")
        drawn = torch.rand(tensor.shape) + 0.5 if name.endswith("running_var") else torch.randn(tensor.shape)
        call(given[name].copy_, drawn)
        tensor.copy_(drawn)
    for name in sorted(given.keys() - expected.keys()):
        raise Rejected(f"{where}: the module has {name}, which nothing needs")


def alike(given: object, expected: torch.Tensor, tolerance: float = TOLERANCE) -> bool:
    """Whether an answer is a tensor, to within a tolerance relative to its largest number."""
    try:
        tensor = as_tensor(given)
    except Exception:
        return False
    if tensor.shape != expected.shape or not tensor.numel():
        return False
    expected = expected.detach().double()
    return bool((tensor - expected).abs().max() <= tolerance * expected.abs().max())


def compare(
    given: object,
    expected: torch.Tensor,
    names: str,
    mistakes: Mapping[str, torch.Tensor] | None = None,
    *,
    tolerance: float = TOLERANCE,
) -> None:
    """Compare an answer with the tensor that is expected.

    Args:
        given: the answer.
        expected: what is right.
        names: what it is, with an article.
        mistakes: what an answer is that makes a known mistake, by what to tell the student then.
        tolerance: relative to the largest number that is expected.

    Raises:
        Rejected: it is another one. The message is that of the first mistake that gives this answer, if any does.
    """
    if alike(given, expected, tolerance):
        return
    for message, wrong in (mistakes or {}).items():
        if alike(given, wrong, tolerance):
            raise Rejected(message)
    tensor = read_tensor(given, tuple(expected.shape), names)
    if not tensor.isfinite().all():
        raise Rejected(f"{names} has numbers that are not finite")
    distance = (tensor - expected.detach().double()).abs().max().item()
    raise Rejected(f"{names} is off by up to {distance:.3g}, where the largest number is {expected.abs().max():.3g}")


def check_gradients(
    given: object, expected: torch.Tensor, leaves: list[torch.Tensor], expected_leaves: list[torch.Tensor]
) -> None:
    """Raise Rejected unless gradients flow through a student's output to its leaves as through the expected output."""
    found = [None] * len(leaves)
    if isinstance(given, torch.Tensor) and given.requires_grad:
        found = call(lambda: torch.autograd.grad(given.square().sum(), leaves, allow_unused=True))
    right = torch.autograd.grad(expected.square().sum(), expected_leaves)
    if not all(map(alike, found, right)):
        raise Rejected(
            "the output is right, but not the gradient that backward() finds through it: is part of it detached, or "
            "computed under torch.no_grad()?"
        )


def check_gradient(loss: object, leaf: torch.Tensor, expected: torch.Tensor) -> None:
    """Raise Rejected unless a student's loss can be sent back to what it was computed from, and rightly."""
    if not isinstance(loss, torch.Tensor) or not loss.requires_grad:
        raise Rejected(
            "the number is right, but backward() can't go through it: compute it from the logits as a tensor, without "
            "item(), detach() or torch.tensor(...)"
        )
    (gradient,) = call(lambda: torch.autograd.grad(loss, leaf))
    compare(gradient, expected, "the gradient that backward() finds through your loss")
