"""What notebook 03 has its readers build, and its exercises."""

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  the field's own abbreviation

from labutils.methods.probes import class_activation_maps
from labutils.models.counting import describe
from labutils.models.resnet import BasicBlock, ResNet
from labutils.notebook.exercises import ours
from labutils.notebook.exercises.comparing import alike, build, cases, check_gradients, compare, share_tensors, tensors
from labutils.notebook.exercises.verdict import Rejected, Verdict, call, check, read_number, read_numbers, read_tensor
from labutils.training.numerics import seeded

LOOSE = 3e-4  # relative, for what subtracts one large mean from another


@check
def check_convolution(answer: Callable[..., torch.Tensor] | None) -> Verdict:
    """Notebook 03, to build: a convolution without biases, as one product of matrices.

    Args:
        answer: of images (N, C, H, W), weights (O, C, k, k), stride and padding; gives maps (N, O, H', W'). Compared
            with PyTorch's.
    """
    for draw, (stride, padding) in zip(cases(4), ((1, 0), (1, 1), (2, 0), (2, 1)), strict=True):
        channels, outputs, kernel = draw.randint(2, 4), draw.randint(5, 7), draw.choice([2, 3])
        images = torch.randn(3, channels, draw.randint(7, 8), draw.randint(9, 11))
        weight = torch.randn(outputs, channels, kernel, kernel)
        expected = F.conv2d(images, weight, stride=stride, padding=padding)
        patches = F.unfold(images, kernel, stride=stride, padding=padding)
        where = f"stride {stride}, padding {padding}"
        mistakes = {
            f"{where}: the kernel is turned round; here a convolution multiplies without turning it": (
                F.conv2d(images, weight.flip(2, 3), stride=stride, padding=padding)
            ),
            f"{where}: the kernel's rows and columns are swapped": (
                F.conv2d(images, weight.transpose(2, 3), stride=stride, padding=padding)
            ),
            f"{where}: height and width of the output are swapped": expected.transpose(2, 3),
            f"{where}: the places of the output are in the wrong order; the height comes before the width": (
                expected.transpose(2, 3).reshape(expected.shape)
            ),
            f"{where}: places and channels are mixed up: before you reshape, the shape is (N, O, places)": (
                expected.flatten(2).transpose(1, 2).reshape(expected.shape)
            ),
            f"{where}: a kernel's weights are in another order than a patch's pixels: channels, rows, columns": (
                (weight.permute(0, 2, 3, 1).flatten(1) @ patches).reshape(expected.shape)
            ),
            f"{where}: the products are averaged; the formula sums them": expected / weight[0].numel(),
            f"{where}: the stride is left out": F.conv2d(images, weight, padding=padding),
            f"{where}: the padding is left out": F.conv2d(images, weight, stride=stride),
        }
        given = call(answer, images, weight, stride=stride, padding=padding)
        compare(given, expected, f"{where}: a tensor of maps", mistakes)
    return Verdict(True, "PyTorch's maps, with and without stride and padding")


@check
def check_batch_norm(answer: Callable[[int], nn.Module] | None) -> Verdict:
    """Notebook 03, to build: batch normalization of feature maps, in training and in evaluation.

    Args:
        answer: a class of the number of channels, with the parameters weight and bias, the buffers running_mean and
            running_var, momentum 0.1 and eps 1e-5. Compared with nn.BatchNorm2d.
    """
    for draw in cases():
        channels = draw.randint(3, 6)
        norm, reference = build(answer, channels), nn.BatchNorm2d(channels)
        check_fresh(norm, reference)
        share_tensors(norm, reference, f"{channels} channels")
        start = {name: tensor.clone() for name, tensor in reference.state_dict().items()}
        spread = torch.logspace(-2, 0, channels).view(-1, 1, 1)  # the smallest shows where eps belongs
        maps = 0.5 + spread * torch.randn(4, channels, draw.randint(2, 3), draw.randint(4, 5))
        check_training_mode(call(norm.train), reference.train(), maps, start)
        check_evaluation_mode(call(norm.eval), reference.eval(), maps)
    return Verdict(True, "as nn.BatchNorm2d in training and in evaluation, running statistics and all")


def check_fresh(norm: nn.Module, reference: nn.Module) -> None:
    """Raise Rejected unless a new normalization has the parameters, buffers and values that it should have."""
    learned = sorted(call(lambda: [name for name, _ in norm.named_parameters()]))
    if learned != ["bias", "weight"]:
        raise Rejected(f"weight and bias should be learnt, as nn.Parameter; yours learns {learned or 'nothing'}")
    held = tensors(norm)
    for name in ("running_mean", "running_var"):
        if name not in held:
            raise Rejected(f"{name} should be a buffer (register_buffer), so that it is kept with the weights")
    for name, tensor in reference.state_dict().items():
        if name != "num_batches_tracked":
            compare(held[name], tensor, f"{name} of a new layer")


def check_training_mode(
    norm: nn.Module, reference: nn.Module, maps: torch.Tensor, start: dict[str, torch.Tensor]
) -> None:
    """Raise Rejected unless a normalization in training mode does as its reference, which starts from `start`."""
    axes, count = (0, 2, 3), maps.numel() // maps.shape[1]
    mean, variance = maps.mean(axes, keepdim=True), maps.var(axes, correction=0, keepdim=True)
    weight, bias = (start[name].view(-1, 1, 1) for name in ("weight", "bias"))
    alone, alone_variance = maps.mean((2, 3), keepdim=True), maps.var((2, 3), correction=0, keepdim=True)
    running = [start[f"running_{name}"].view(-1, 1, 1) for name in ("mean", "var")]
    eps = 1e-5

    def normalised(centre: torch.Tensor, square: torch.Tensor) -> torch.Tensor:
        return (maps - centre) / (square + eps).sqrt() * weight + bias

    mistakes = {
        "in training mode you normalise by the running statistics; it takes the batch's own": normalised(*running),
        "you normalise by the running statistics just updated; in training mode it takes the batch's own": (
            normalised(running[0].lerp(mean, 0.1), running[1].lerp(variance * count / (count - 1), 0.1))
        ),
        "each image is normalised by itself; the statistics are over images, rows and columns (dim=(0, 2, 3))": (
            normalised(alone, alone_variance)
        ),
        "each place has statistics of its own; they are over images, rows and columns (dim=(0, 2, 3))": (
            normalised(maps.mean(0), maps.var(0, correction=0))
        ),
        "you normalise by the unbiased variance; it takes the biased one (correction=0)": (
            normalised(mean, variance * count / (count - 1))
        ),
        "you divide by the variance; it takes its square root": (maps - mean) / (variance + eps) * weight + bias,
        "eps belongs under the root, beside the variance": (maps - mean) / (variance.sqrt() + eps) * weight + bias,
        "weight and bias are left out": (maps - mean) / (variance + eps).sqrt(),
    }
    leaf = maps.clone().requires_grad_()
    given, expected = call(norm, leaf), reference(leaf)
    compare(given, expected, "in training mode the output", mistakes, tolerance=LOOSE)
    check_norm_gradient(given, expected, leaf)
    updated, held, momentum = reference.state_dict(), call(lambda: dict(norm.named_buffers())), 0.1
    for name, statistic in (("running_mean", mean), ("running_var", variance * count / (count - 1))):
        flat = statistic.flatten()
        mistakes = {
            f"{name} has not changed in training: it moves a tenth of the way to the batch's": start[name],
            f"{name} moves by nine tenths; it keeps nine tenths, and takes one of the batch's": (
                momentum * start[name] + (1 - momentum) * flat
            ),
            f"{name} is the last batch's; it moves only a tenth of the way": flat,
            "running_var takes the biased variance; it is the unbiased one that is kept": (
                (1 - momentum) * start[name] + momentum * variance.flatten()
            ),
        }
        compare(held.get(name), updated[name], f"{name} after a batch", mistakes)
        if held[name].requires_grad:
            raise Rejected(f"{name} holds on to the batch it came from: compute it under torch.no_grad(), or detach()")


def check_norm_gradient(given: object, expected: torch.Tensor, maps: torch.Tensor) -> None:
    """Raise Rejected unless the gradient of a normalization's output with respect to its maps is the right one."""
    weights = torch.randn_like(maps)
    (right,) = torch.autograd.grad(expected, maps, weights)
    through = getattr(given, "requires_grad", False)
    if not through or not alike(
        call(lambda: torch.autograd.grad(given, maps, weights, allow_unused=True))[0], right, LOOSE
    ):
        raise Rejected(
            "the output is right, but not its gradient: the batch's mean and variance depend on the maps, too, so only "
            "the update of the running statistics belongs under torch.no_grad()"
        )


def check_evaluation_mode(norm: nn.Module, reference: nn.Module, maps: torch.Tensor) -> None:
    """Raise Rejected unless a normalization in evaluation mode does as its reference."""
    given, expected, held = call(norm, maps), reference(maps), reference.state_dict()
    for name in ("running_mean", "running_var"):
        if not alike(tensors(norm).get(name), held[name]):
            raise Rejected(f"in evaluation mode your {name} changed: it is to be used then, not updated")
    by_batch = "in evaluation mode you normalise by the batch's statistics; it takes the running ones"
    compare(given, expected, "in evaluation mode the output", {by_batch: reference.train()(maps)}, tolerance=LOOSE)


@check
def check_residual_block(answer: Callable[[int, int, int], nn.Module] | None) -> Verdict:
    """Notebook 03, to build: a basic block with its projection.

    Args:
        answer: a class of input channels, output channels and stride, with conv1, norm1, conv2, norm2 and skip, which
            has the layers 0 (a convolution) and 1 (its normalization) where the shape changes, and none elsewhere.
            Compared with labutils' own block of the same weights.
    """
    for draw, (widens, stride) in zip(cases(4), ((False, 1), (True, 2), (True, 1), (False, 2)), strict=True):
        inputs = draw.randint(3, 5)
        width = inputs + draw.randint(1, 3) if widens else inputs
        where = f"{inputs} -> {width} channels, stride {stride}"
        block, reference = build(answer, inputs, width, stride), ours.residual_block(inputs, width, stride)
        share_tensors(block, reference, where)
        images = torch.randn(4, inputs, 8, 8)
        with torch.no_grad():
            check_skip(block, reference, images, where)
            first = F.relu(reference.norm1(reference.conv1(images)))
            y, skip = reference.norm2(reference.conv2(first)), reference.skip(images)
            linear = reference.norm2(reference.conv2(reference.norm1(reference.conv1(images))))
            mistakes = {
                f"{where}: the skip is added after the last ReLU; it belongs before it": y.relu() + skip,
                f"{where}: the ReLU after the sum is missing": y + skip,
                f"{where}: the skip is left out": y.relu(),
                f"{where}: the ReLU between the two convolutions is missing": (linear + skip).relu(),
                f"{where}: the skip has a ReLU of its own": (y + skip.relu()).relu(),
                f"{where}: norm1 is used twice; norm2 belongs after the second convolution": (
                    (reference.norm1(reference.conv2(first)) + skip).relu()
                ),
            }
            seen = images.clone()
            given = call(lambda block=block, seen=seen: block(seen))
            compare(given, (y + skip).relu(), f"{where}: the output", mistakes)
            if not seen.equal(images):
                raise Rejected(
                    "the right output, but the block changes its input in place: an empty skip gives x itself"
                )
        maps = images.requires_grad_()
        given = call(lambda block=block, maps=maps: block(maps))
        own, expected = (dict(net.named_parameters()) for net in (block, reference))
        leaves = [maps, *(own[name] for name in expected)]  # whose order is the student's
        check_gradients(given, reference(maps), leaves, [maps, *expected.values()])
    return Verdict(True, "as labutils' block, with and without projection, with and without stride")


def check_skip(block: nn.Module, reference: BasicBlock, images: torch.Tensor, where: str) -> None:
    """Raise Rejected unless a block's two convolutions and its skip each give maps of the size they should."""
    for name in ("conv1", "skip"):
        found = call(lambda name=name: tuple(getattr(block, name)(images).shape))
        expected = tuple(getattr(reference, name)(images).shape)
        if found != expected:
            part = "the projection" if name == "skip" else "the first convolution"
            raise Rejected(
                f"{where}: {part} gives maps of the shape {found}, not {expected}: has it the block's stride?"
            )


@check
def check_one_cycle(answer: Callable[..., float] | None) -> Verdict:
    """Notebook 03, to build: the learning rate of each step of one cycle.

    Args:
        answer: of a step (counted from 0), the number of steps, the peak and the share of steps in which the rate
            rises; gives the rate. Compared with PyTorch's OneCycleLR.
    """
    for draw in cases():
        steps, peak, share = 10 * draw.randint(4, 9), draw.choice([0.005, 0.08, 1.0]), draw.choice([0.1, 0.3])
        top = round(share * steps) - 1
        for step in (0, top, steps - 1, top // 2 + 1, (steps + top) // 2, *range(steps)):
            expected = ours.one_cycle(step, steps, peak, share)
            given = read_number(call(answer, step, steps, peak, share))
            if not alike(torch.tensor(given / peak), torch.tensor(expected / peak), tolerance=1e-3):
                part = {0: "the start, peak / 25", top: "the peak", steps - 1: "the end, peak / 25 / 10,000"}.get(step)
                part = part or ("on the way up" if step < top else "on the way down")
                where = f"step {step} of 0 to {steps - 1}, peak {peak:g}, {share:.0%} up"
                raise Rejected(f"{where} ({part}): the rate is {expected:.4g}, yours {given:.4g}")
    return Verdict(True, "PyTorch's OneCycleLR has the same rate at each step")


@check
def check_convolution_cost(answer: Callable[[int, int, int, int], tuple[int, int]] | None) -> Verdict:
    """Notebook 03, exercise 1: parameters and multiply-adds of a convolution.

    Args:
        answer: of input channels, output channels, the kernel's side and the output's side in pixels; gives both
            numbers for a convolution without biases. Compared with layers that are built and counted.
    """
    for inputs, outputs, kernel, side in ((3, 16, 3, 32), (16, 32, 3, 16), (16, 32, 1, 16), (64, 64, 3, 8)):
        answered = call(answer, inputs, outputs, kernel, side)
        given = read_numbers(answered, 2, "a number of parameters and one of multiply-adds")
        layer = torch.nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        counted = describe(layer, (inputs, side, side))
        expected = [counted["parameters"], counted["multiply_adds"]]
        if given != expected:
            layer = f"{inputs} -> {outputs} channels, {kernel}x{kernel}, {side}x{side} pixels"
            right, said = (" and ".join(f"{number:,.12g}" for number in pair) for pair in (expected, given))
            raise Rejected(f"{layer}: PyTorch counts {right}, you say {said}")
    return Verdict(True, "your formulas count what PyTorch counts, for each layer tried")


@check
def check_receptive_field(answer: Callable[[Sequence[int]], int] | None) -> Verdict:
    """Notebook 03, exercise 2: how many pixels, side by side, one place of a ResNet's last map depends on.

    Args:
        answer: of the blocks a stage. Compared with nets through which a gradient is sent back to the image.
    """
    for blocks in ((1, 1, 1, 1), (2, 1, 1, 1), (1, 1, 1, 2), (2, 2, 2, 2)):
        given = read_number(call(answer, blocks))
        measured = measured_receptive_field(blocks)
        if given != measured:
            raise Rejected(f"{list(blocks)}: a net that was built sees {measured} pixels, you say {given:g}")
    return Verdict(True, "your recursion gives what gradients were measured to reach; CIFAR's images have 32 pixels")


def measured_receptive_field(blocks: Sequence[int]) -> int:
    """Pixels of a row of the image on which one place of a ResNet's last map depends."""
    net = ResNet(blocks, width=1, in_channels=1).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(1)  # all positive, so that no path through the net is lost
    images = torch.ones(1, 1, 256, 256, requires_grad=True)
    maps = net.feature_maps(images)
    middle = maps.shape[-1] // 2
    (gradient,) = torch.autograd.grad(maps[0, -1, middle, middle], images)
    return (gradient[0, 0].abs().sum(0) > 0).sum().item()


@check
def check_activation_maps(answer: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None) -> Verdict:
    """Notebook 03, exercise 3: class activation maps from feature maps and the head's weights.

    Args:
        answer: of the last stage's maps (N, F, H, W) and the head's weights (classes, F); gives (N, classes, H, W),
            without the head's bias.
    """
    with seeded(0, torch.device("cpu")):
        net = ResNet((1, 1, 1, 1), width=4, classes=7).eval()
        images = torch.randn(3, 3, 40, 32)  # higher than wide, so that rows and columns can't be swapped unnoticed
    with torch.no_grad():
        answered = call(answer, net.feature_maps(images), net.head.weight.detach())
        expected = class_activation_maps(net, images) - net.head.bias.view(-1, 1, 1)
    given = read_tensor(answered, tuple(expected.shape), "a tensor of maps")
    if torch.allclose(given, expected.double(), atol=1e-4):
        return Verdict(True, "the mean of each map over the places is the class's logit, but for the bias")
    if torch.allclose(given.mean(dim=(2, 3)), expected.mean(dim=(2, 3)).double(), atol=1e-4):
        raise Rejected("the mean of each map is its logit, but the values are not at the places where they belong")
    raise Rejected("the right shape, but the mean of a class's map over the places is not its logit")
