"""Several MLPs of one shape trained as one: a product of matrices for all of them instead of one for each.

A small network keeps a processor busy less with arithmetic than with starting operations. Stacked, K networks share
each start, and each learns what it would have learnt alone. Eight of depth 40 and width 64 take 0.35 of the time of
eight calls of `fit` one after the other on the same two cores, and 0.37 with batch normalization (AMD EPYC, torch 2.15,
n = 5 and 4; `make bench`).
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  the field's own abbreviation

from labutils.data import ImageData, Split
from labutils.errors import SettingError
from labutils.models import MLP
from labutils.training import (
    CYCLES,
    LOSS_CHECK_STEPS,
    Diverged,
    History,
    Training,
    accuracy,
    check_losses,
    make_optimizer,
    make_scheduler,
    validate,
)

if TYPE_CHECKING:
    import pandas as pd


class MLPStack(nn.Module):
    """K MLPs of one shape as one network, whose parameters are theirs side by side, (K, ...).

    The nets' own parameters and buffers become views of the stack's: what the stack learns, they have learnt.

    Args:
        models: alike in their `stack_shape`, on one device.
    """

    def __init__(self, models: Sequence[MLP]):
        super().__init__()
        self.models = tuple(models)  # a tuple, so that their parameters are not registered a second time
        first = models[0]
        self.activation = type(first.layers[0].activation)()
        if isinstance(self.activation, nn.ReLU):
            self.activation.inplace = True  # saves a pass through memory, which a stack needs more of
        # Of plain nets and of learned scales these are not used.
        scales = [[[float(model.layers[-1].residual_scale or 0)]] for model in models]
        self.scales = torch.tensor(scales, device=first.head.weight.device)
        self.side_by_side: dict[str, torch.Tensor] = {}
        for name, _ in first.named_parameters():
            together = nn.Parameter(lay_side_by_side([model.get_parameter(name) for model in models]))
            self.register_parameter(name.replace(".", "/"), together)
            self.side_by_side[name] = together
        for name, _ in first.named_buffers():
            self.side_by_side[name] = lay_side_by_side([model.get_buffer(name) for model in models])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (K, B, classes) in training mode, for a batch of its own for each net, (K, B, C, H, W)."""
        x = images.flatten(2)
        for number, layer in enumerate(self.models[0].layers):
            name = f"layers.{number}"
            y = self.activation(self.normalised(f"{name}.norm", layer.norm, self.linear(f"{name}.linear", x)))
            if layer.residual_scale is None:
                x = y
            else:
                learned = self.side_by_side.get(f"{name}.residual_scale")
                x = torch.addcmul(x, y, self.scales if learned is None else learned.view(-1, 1, 1))
        return self.linear("head", x)

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return torch.baddbmm(self.side_by_side[f"{name}.bias"][:, None], x, self.side_by_side[f"{name}.weight"])

    def normalised(self, name: str, norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """What the nets' normalization makes of their x, (K, B, width)."""
        if isinstance(norm, nn.Identity):
            return x
        weight, bias = self.side_by_side[f"{name}.weight"], self.side_by_side[f"{name}.bias"]
        if isinstance(norm, nn.LayerNorm):
            return torch.addcmul(bias[:, None], F.layer_norm(x, norm.normalized_shape, eps=norm.eps), weight[:, None])
        # Batch normalization treats each unit by itself, so the units of all nets are as many units of one.
        self.side_by_side[f"{name}.num_batches_tracked"].add_(1)
        mean, variance = (self.side_by_side[f"{name}.running_{figure}"].flatten() for figure in ("mean", "var"))
        units = x.transpose(0, 1).flatten(1)
        units = F.batch_norm(units, mean, variance, weight.flatten(), bias.flatten(), True, norm.momentum, norm.eps)
        return units.unflatten(1, weight.shape).transpose(0, 1)


def lay_side_by_side(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Tensors as one, (K, ...), of which they become views; matrices lie transposed, as products want them."""
    together = torch.stack([tensor.detach().t() if tensor.ndim == 2 else tensor.detach() for tensor in tensors])
    for tensor, view in zip(tensors, together, strict=True):
        tensor.data = view.t() if tensor.ndim == 2 else view
    return together


def stack_shape(model: nn.Module, training: Training) -> dict[str, object] | None:
    """What networks and trainings must share to be trained as one; None for those that can't be.

    Seeds, initialisations and the sizes of residual scales may differ. Dropout and augmentation draw their random
    numbers in an order that a stack does not follow; plateau gives each network a learning rate of its own; averages
    of weights are kept by `fit` alone, and muon takes a matrix at a time.
    """
    if (
        not isinstance(model, MLP)
        or model.dropout
        or training.augment is not None
        or training.averaging
        or training.optimizer == "muon"
        or training.scheduler == "plateau"
        or training.precision == "bf16"
    ):
        return None
    shape = {name: getattr(model, name) for name in ("depth", "width", "residual", "normalization", "activation")}
    learned = model.residual and model.residual_scale == "zero"
    return shape | {"learned_scale": learned} | asdict(replace(training, seed=0))


def fit_stack(
    models: Sequence[MLP],
    data: ImageData,
    trainings: Sequence[Training],
    *,
    probe: "Callable[[nn.Module], pd.DataFrame] | None" = None,
) -> list[History | Diverged]:
    """Train MLPs of one shape together; each learns what `fit` alone would have taught it, to rounding.

    Where a gradient is 0 but for rounding, as that of a bias before batch normalization is, Adam makes full steps of
    it. They change nothing but batch normalization's running means, and through those the validation figures: as
    much as they differ between one thread and two.

    Args:
        models: what to train, in place, as in `fit`.
        data: as in `fit`.
        trainings: one for each model, alike in all but their seeds.
        probe: as in `fit`, called with each model after each epoch.

    Returns:
        For each model its history, or why its training ended. An epoch's `seconds` are the stack's, divided by the
        number of its models.

    Raises:
        SettingError: models or trainings that can't be trained as one.
    """
    shapes = [stack_shape(model, training) for model, training in zip(models, trainings, strict=True)]
    if None in shapes or any(shape != shapes[0] for shape in shapes):
        raise SettingError("models", list(models), "MLPs whose stack_shape is the same, and not None")
    for model in models:
        model.to(data.device).train()
    stack, training = MLPStack(models), trainings[0]
    orders = [torch.Generator().manual_seed(training.seed) for training in trainings]
    optimizer = make_optimizer(stack, training)
    steps = -(-len(data.train) // training.batch_size)
    scheduler = make_scheduler(optimizer, training, steps)
    histories: list[History | Diverged] = [History() for _ in models]
    best = [own_state(model) for model in models]
    learning = set(range(len(models)))  # whose histories still grow

    for epoch in range(1, training.epochs + 1):
        start = time.perf_counter()
        losses, outputs, targets = [], [], []
        for images, labels in stacked_batches(data.train, data, training.batch_size, orders):
            logits = stack(images)
            step_losses = F.cross_entropy(
                logits.transpose(1, 2), labels, label_smoothing=training.label_smoothing, reduction="none"
            ).mean(1)
            # Each net's loss depends on its own parameters alone, so the sum's gradient holds all of theirs.
            step_losses.sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            lr = optimizer.param_groups[0]["lr"]
            if training.scheduler in CYCLES:
                scheduler.step()
            losses.append(step_losses.detach())
            outputs.append(logits.detach())
            targets.append(labels)
            if len(losses) % LOSS_CHECK_STEPS == 0 or len(losses) == steps:
                for member in tuple(learning):
                    try:
                        check_losses([each[member] for each in losses], epoch, histories[member])
                    except Diverged as error:
                        histories[member] = error
                        learning.remove(member)
        if training.scheduler == "cosine":
            scheduler.step()

        logits, labels = torch.cat(outputs, dim=1), torch.cat(targets, dim=1)
        train_losses = torch.stack(losses).mean(0)
        seconds = time.perf_counter() - start
        for member in tuple(learning):
            start, model, history = time.perf_counter(), models[member], histories[member]
            row = {"epoch": epoch, "train_loss": train_losses[member].item()}
            row["train_accuracy"] = accuracy(logits[member], labels[member])
            row |= validate(model, data, training.precision)
            row |= {"lr": lr, "seconds": seconds / len(models) + time.perf_counter() - start}
            history.rows.append(row)
            if history.best_epoch == epoch:
                best[member] = own_state(model)
            if probe is not None:
                history.probed.append(probe(model).assign(epoch=epoch))
            if training.patience is not None and epoch - history.best_epoch >= training.patience:
                history.stopped_early = True
                learning.remove(member)
        if not learning:
            break
    for model, state in zip(models, best, strict=True):
        model.load_state_dict(state, assign=True)
    return histories


def stacked_batches(
    split: Split, data: ImageData, batch_size: int, orders: Sequence[torch.Generator]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """What `batches` gives for each of K generators, side by side.

    Yields:
        images (K, B, C, H, W) float32, overwritten by the next ones, and labels (K, B) int64.
    """
    # Memory for the largest batch, used for all: asking the system for it anew in each step would take longer than
    # filling it.
    room = torch.empty((len(orders) * batch_size, *data.image_shape), device=split.images.device)
    together = torch.stack([torch.randperm(len(split), generator=order) for order in orders])
    for indices in together.to(split.images.device).split(batch_size, dim=1):
        images = split.images.index_select(0, indices.flatten())
        yield data.normalise(images, out=room[: len(images)]).unflatten(0, indices.shape), split.labels[indices]


def own_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """A model's weights and buffers in memory of their own."""
    return {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in model.state_dict().items()}
