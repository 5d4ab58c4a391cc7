"""Optimizers and learning-rate schedules, Muon among them."""

from collections.abc import Iterable

import torch
from torch import nn

from labutils.errors import SettingError
from labutils.models.resnet import CNN
from labutils.training.numerics import direction_type
from labutils.training.settings import Training

WARM_UP = 0.1  # share of one cycle's steps in which the learning rate rises
SHORTEST_CYCLE = 3  # steps: one up, one down, and the turn
CYCLES = {"onecycle": "cos", "triangular": "linear"}  # how the schedules of one cycle rise and fall, step by step
# Of a polynomial x -> a x + b x^3 + c x^5 that, applied again and again, takes every x from 0 to 1 to about 1
# (Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks").
A, B, C = 3.4445, -4.7750, 2.0315
TURNS = 5
PLAIN_RATE = 2.5  # times the hidden weights' learning rate, of what takes plain steps
SHORTEST = 1e-3  # what a length of 0 counts as: weights can grow from it, and no step is divided by it


def make_optimizer(model: nn.Module, training: Training) -> torch.optim.Optimizer:
    """The optimizer of a training, where there is one in its fused form: one call a step for all parameters."""
    if training.optimizer == "muon":
        head, below = split_at_head(model)
        return Muon(
            [parameter for parameter in below if parameter.ndim > 1],
            [parameter for parameter in below if parameter.ndim < 2],
            head,
            lr=training.lr,
            head_lr=training.head_lr,
            momentum=training.momentum,
            weight_decay=training.weight_decay,
        )
    groups = parameter_groups(model, training)
    settings = {"lr": training.lr, "weight_decay": training.weight_decay, "fused": True}
    if training.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=training.momentum, **settings)
    optimizer = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[training.optimizer]
    return optimizer(groups, **settings)


def parameter_groups(model: nn.Module, training: Training) -> list[dict]:
    """A model's parameters that learn, with their learning rates: one group, or one for each part from the head on."""
    if training.stage_lr != 1 and not isinstance(model, CNN):
        raise SettingError("stage_lr", training.stage_lr, f"1 for {model}, which has no stages")
    if training.stage_lr == training.head_lr == 1:
        return [{"params": learning_parameters(model), "lr": training.lr}]
    head, *below = split_at_head(model)
    if training.stage_lr != 1:
        below = [learning_parameters(part) for part in reversed([model.stem, *model.stages])]
        if sum(map(len, [head, *below])) < len(learning_parameters(model)):
            raise SettingError("stage_lr", training.stage_lr, "1 for a network with layers beside its stages")
    rates = [training.head_lr, *(training.stage_lr**distance for distance in range(1, len(below) + 1))]
    groups = zip([head, *below], rates, strict=True)
    return [{"params": learning, "lr": training.lr * rate} for learning, rate in groups if learning]


def split_at_head(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The parameters that learn of a model's head, and those of all below it.

    Raises:
        SettingError: the model has no `head`, which the optimizer treats apart.
    """
    if not hasattr(model, "head"):
        raise SettingError("model", type(model).__name__, "a network with a `head`, as muon and head_lr need one")
    head = set(model.head.parameters())
    learning = learning_parameters(model)
    return [one for one in learning if one in head], [one for one in learning if one not in head]


def learning_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of a model that are not frozen."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def make_scheduler(
    optimizer: torch.optim.Optimizer, training: Training, steps: int
) -> torch.optim.lr_scheduler.LRScheduler | None:
    """The scheduler of a training of so many steps an epoch."""
    schedulers = torch.optim.lr_scheduler
    match training.scheduler:
        case "cosine":
            return schedulers.CosineAnnealingLR(optimizer, T_max=training.epochs)
        case "plateau":
            return schedulers.ReduceLROnPlateau(optimizer, factor=0.5, patience=2)
        case "onecycle" | "triangular":
            total = training.epochs * steps
            if total < SHORTEST_CYCLE:
                raise SettingError("scheduler", training.scheduler, f"one cycle of {SHORTEST_CYCLE} steps or more")
            return schedulers.OneCycleLR(
                optimizer,
                [group["lr"] for group in optimizer.param_groups],
                total_steps=total,
                pct_start=max(WARM_UP, 2 / total),  # a step at least, so that the peak is reached
                anneal_strategy=CYCLES[training.scheduler],
                cycle_momentum=False,  # it stays what it was set to
            )


class Muon(torch.optim.Optimizer):
    """Momentum for all parameters; that of a hidden layer's weights is made orthogonal before each step.

    Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks".
    A gradient by a layer's weights is mostly made of a few directions. Orthogonal, a step goes as far in each of them,
    the rare ones too. Its length no longer depends on the gradient's; it is a share of the weights' own length, as in
    LARS (You et al. 2017), because before a normalization that is all that counts. Without weight decay the weights
    grow step by step, over tens of epochs to thousands of times their first length. A convolution's weights count as a
    matrix with a row for each output channel.

    Args:
        hidden: weights of hidden layers, with two dimensions or more.
        others: biases and normalizations, which take plain steps with Nesterov's momentum, at PLAIN_RATE times the
            learning rate.
        head: weights and biases of the head, which take such steps, too.
        lr: learning rate, above 0: for hidden weights by what share of their length a step changes them.
        head_lr: factor on the head's learning rate, above 0.
        momentum: from 0 to below 1.
        weight_decay: from 0; of the hidden weights, decoupled from the gradient.
    """

    def __init__(
        self,
        hidden: Iterable[nn.Parameter],
        others: Iterable[nn.Parameter],
        head: Iterable[nn.Parameter] = (),
        *,
        lr: float,
        head_lr: float = 1.0,
        momentum: float,
        weight_decay: float,
    ):
        groups = [
            {"params": list(hidden), "orthogonal": True, "lr": lr, "weight_decay": weight_decay},
            {"params": list(others), "orthogonal": False, "lr": PLAIN_RATE * lr, "weight_decay": 0.0},
            {"params": list(head), "orthogonal": False, "lr": PLAIN_RATE * lr * head_lr, "weight_decay": 0.0},
        ]
        super().__init__([group for group in groups if group["params"]], {"momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        """Change the parameters by their gradients."""
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                buffer = state["momentum_buffer"].mul_(momentum).add_(parameter.grad)
                step = parameter.grad.add(buffer, alpha=momentum)
                if group["orthogonal"]:
                    step = orthogonal(step.flatten(1)).view(step.shape)
                    step *= parameter.norm().clamp_min(SHORTEST) / step.norm().clamp_min(SHORTEST)
                parameter.mul_(1 - lr * group["weight_decay"]).add_(step, alpha=-lr)


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """About the orthogonal matrix nearest to a matrix: the same directions, all singular values near 1.

    By Newton and Schulz's iteration, for whose direction bfloat16 is exact enough.
    """
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = (x / (x.norm() + 1e-7)).to(direction_type(x.device))
    for _ in range(TURNS):
        square = x @ x.T
        x = A * x + (B * square + C * square @ square) @ x
    x = x.to(matrix.dtype)
    return x.T if matrix.shape[0] > matrix.shape[1] else x
