"""Muon: steps of momentum, made orthogonal (Jordan et al. 2024, "Muon: an optimizer for hidden layers")."""

from collections.abc import Iterable

import torch
from torch import nn

# Of a polynomial x -> a x + b x^3 + c x^5 that, applied again and again, takes every x from 0 to 1 to about 1.
A, B, C = 3.4445, -4.7750, 2.0315
TURNS = 5
PLAIN_RATE = 2.5  # times the hidden weights' learning rate, of what takes plain steps
SHORTEST = 1e-3  # what a length of 0 counts as: weights can grow from it, and no step is divided by it


class Muon(torch.optim.Optimizer):
    """Momentum for all parameters; that of a hidden layer's weights is made orthogonal before each step.

    A gradient by a layer's weights is mostly made of a few directions. Orthogonal, a step goes as far in each of them,
    the rare ones too. Its length no longer depends on the gradient's; it is a share of the weights' own length, as in
    LARS (You et al. 2017), because before a normalization that is all that counts. A convolution's weights count as a
    matrix with a row for each output channel.

    Args:
        hidden: weights of hidden layers, with two dimensions or more.
        others: biases, normalizations, and the head, which take plain steps with Nesterov's momentum, at PLAIN_RATE
            times the learning rate.
        lr: learning rate, above 0: for hidden weights by what share of their length a step changes them.
        momentum: from 0 to below 1.
        weight_decay: from 0; of the hidden weights, decoupled from the gradient.
    """

    def __init__(
        self,
        hidden: Iterable[nn.Parameter],
        others: Iterable[nn.Parameter],
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
    ):
        groups = [
            {"params": list(hidden), "orthogonal": True, "lr": lr, "weight_decay": weight_decay},
            {"params": list(others), "orthogonal": False, "lr": PLAIN_RATE * lr, "weight_decay": 0.0},
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

    By Newton and Schulz's iteration, in bfloat16, which is enough for a direction.
    """
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = (x / (x.norm() + 1e-7)).bfloat16()
    for _ in range(TURNS):
        square = x @ x.T
        x = A * x + (B * square + C * square @ square) @ x
    x = x.to(matrix.dtype)
    return x.T if matrix.shape[0] > matrix.shape[1] else x
