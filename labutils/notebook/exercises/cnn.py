"""The exercises of notebook 03."""

from collections.abc import Callable, Sequence

import torch

from labutils.methods.probes import class_activation_maps
from labutils.models.counting import describe
from labutils.models.resnet import ResNet
from labutils.notebook.exercises.verdict import Rejected, Verdict, call, check, read_number, read_numbers, read_tensor
from labutils.training.device import seeded


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
    if not torch.allclose(given, expected.double(), atol=1e-4):
        raise Rejected("the right shape, but the mean of a class's map over the places is not its logit")
    return Verdict(True, "the mean of each map over the places is the class's logit, but for the bias")
