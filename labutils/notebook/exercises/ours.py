"""Ours: what stands in for a stub that is not solved, where neither PyTorch nor labutils has it in the stub's form.

The checks compare with these, too. Whoever wants to solve a stub should not read on.
"""

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  the field's own abbreviation

from labutils.methods.probes import activation_gradients
from labutils.models.mlp import MLP, HiddenLayer
from labutils.models.resnet import BasicBlock

Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]


def layer_backward(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, gradient: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients with respect to x (N, I), weight (O, I) and bias (O,) of relu(x W^T + b), by autograd."""
    inputs = [tensor.detach().requires_grad_() for tensor in (x, weight, bias)]
    with torch.enable_grad():
        return torch.autograd.grad(F.linear(*inputs).relu(), inputs, gradient)


def train_epoch(model: nn.Module, batches: Batches, optimizer: torch.optim.Optimizer) -> float:
    """Train a model for one pass over some batches; the mean cross-entropy over their images."""
    total, count = 0.0, 0
    model.train()
    for images, labels in batches:
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total, count = total + len(labels) * loss.item(), count + len(labels)
    return total / count


def residual_layer(width: int) -> HiddenLayer:
    """x + relu(Wx + b)."""
    return HiddenLayer(width, width, normalization=None, activation="relu", dropout=0.0, residual_scale=1.0)


def gradient_norms(model: MLP, images: torch.Tensor, labels: torch.Tensor) -> list[float]:
    """The loss's gradient norms with respect to each hidden layer's outputs, from the input on."""
    return activation_gradients(model, images, labels)["norm"].tolist()


def rate(norms: torch.Tensor) -> float:
    """By what factor norms (L,) grow with each layer towards the input: a line fitted to their logarithms."""
    logarithms = torch.as_tensor(norms, dtype=torch.float64).log()
    layers = torch.arange(len(logarithms), dtype=torch.float64)
    layers -= layers.mean()
    return math.exp(-(layers @ logarithms / layers.square().sum()).item())


def he_weights(outputs: int, inputs: int) -> torch.Tensor:
    """Weights (outputs, inputs) of mean 0 and variance 2 / inputs."""
    return torch.randn(outputs, inputs) * math.sqrt(2 / inputs)


def lesion(model: MLP, number: int, images: torch.Tensor) -> torch.Tensor:
    """A net's logits when the hidden layer of a number, counted from 1, passes its input on."""
    hook = model.layers[number - 1].register_forward_hook(lambda _, inputs, output: inputs[0])
    try:
        with torch.no_grad():
            return model(images)
    finally:
        hook.remove()


def residual_block(inputs: int, width: int, stride: int) -> BasicBlock:
    """Two 3 x 3 convolutions with a skip around them, projected where the shape changes."""
    return BasicBlock(inputs, width, stride, residual=True)


def one_cycle(step: int, steps: int, peak: float, warm_up: float = 0.1) -> float:
    """The learning rate of one of a training's steps, counted from 0, as PyTorch's OneCycleLR has it."""
    start, end, top = peak / 25, peak / 25 / 1e4, warm_up * steps - 1
    if step <= top:
        low, share = start, step / top
    else:
        low, share = end, (steps - 1 - step) / (steps - 1 - top)
    return low + (peak - low) * (1 - math.cos(math.pi * share)) / 2


def knn(train: torch.Tensor, labels: torch.Tensor, queries: torch.Tensor, k: int) -> torch.Tensor:
    """The commonest class among each query's (M, F) k nearest training features (N, F): (M,)."""
    distances = train.square().sum(dim=1) - 2 * queries @ train.T  # but for what is the same for all neighbours
    nearest = distances.topk(k, dim=1, largest=False).indices
    return F.one_hot(labels[nearest]).sum(dim=1).argmax(dim=1)


def freeze(model: nn.Module, stages: int) -> nn.Module:
    """Make a net ready for training: its head and its last stages (-1: everything) learn, the rest stays as it is."""
    model.requires_grad_(stages == -1).train()
    learning = [model.head, *model.stages[len(model.stages) - max(stages, 0) :]]
    for part in learning:
        part.requires_grad_()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and not module.weight.requires_grad:
            module.eval()
    return model


def probe(features: torch.Tensor, labels: torch.Tensor, classes: int, decay: float) -> nn.Linear:
    """The layer with the least mean cross-entropy plus decay / 2 times its squared weights."""
    head = nn.Linear(features.shape[1], classes, device=features.device)
    nn.init.zeros_(head.weight)
    solver = torch.optim.LBFGS(head.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def objective() -> torch.Tensor:
        solver.zero_grad()
        value = probe_objective(head, features.detach(), labels, decay)
        value.backward()
        return value

    solver.step(objective)
    return head


def probe_objective(
    head: Callable[[torch.Tensor], torch.Tensor], features: torch.Tensor, labels: torch.Tensor, decay: float
) -> torch.Tensor:
    """What a probe minimises."""
    return F.cross_entropy(head(features), labels) + decay / 2 * head.weight.square().sum()


@torch.no_grad()
def cached_teacher(teacher: nn.Module, images: torch.Tensor, batch_size: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """A teacher's logits for images (N, C, H, W), found once: a function from indices (B,) to logits (B, classes)."""
    was_training = teacher.training
    teacher.eval()
    logits = torch.cat([teacher(batch) for batch in images.split(batch_size)])
    teacher.train(was_training)
    return lambda indices: logits[indices]


def best_temperature(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """The temperature at which logits (N, classes) divided by it have the least cross-entropy (Guo et al. 2017)."""
    logits = logits.detach().double()
    low, high = 1e-3, 1e3
    for _ in range(60):
        middle = math.sqrt(low * high)
        soft = (logits / middle).softmax(dim=1)
        # The derivative by 1/T: the mean logit that the answers expect, less the label's; it is 0 at the least.
        excess = (soft * logits).sum(dim=1).mean() - logits.gather(1, labels[:, None]).mean()
        low, high = (middle, high) if excess > 0 else (low, middle)
    return math.sqrt(low * high)
