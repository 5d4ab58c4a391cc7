"""What a model is, for the names of what is kept: the course's own by version, any other by what it computes."""

import copy
import hashlib
import inspect
import sys

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  the field's own abbreviation

from labutils.errors import SettingError
from labutils.models.mlp import MLP
from labutils.models.resnet import ResNet
from labutils.models.shallow import ShallowCNN

# Raised when a class comes to compute something else from the same settings, weights and seed. A test compares the
# syntax trees of labutils/models with those that these versions were given to.
VERSIONS = {MLP: 1, ResNet: 1, ShallowCNN: 2}
PROBES = 4  # images that an unknown model is shown
SCALES = (1, 100)  # of their pixels: some models differ only in what they make of large numbers, as relu6 from relu


def model_identity(model: nn.Module, image_shape: tuple[int, ...], *, head: bool = True) -> dict[str, object]:
    """What a model computes, apart from its weights' values.

    Args:
        model: any network; not changed.
        image_shape: (C, H, W) of the images it sees.
        head: whether its head counts; the features of the course's own models do not depend on it.

    Returns:
        Its tensors' shapes and what is frozen; for a model as a class of the course's own makes it, its name, version,
        settings and modules; for any other what it answers (see `behaviour`).
    """
    kind = type(model)
    if kind not in VERSIONS or not as_made(model, head=head):
        return {"shapes": shapes(model), "frozen": frozen(model), "behaviour": behaviour(model, image_shape)}
    settings = own_settings(model)
    parts = {"class": kind.__name__, "version": VERSIONS[kind], "settings": settings, "frozen": frozen(model)}
    parts["modules"] = {name: type(module).__name__ for name, module in modules(model, head=False).items()}
    if head:
        return parts | {"shapes": shapes(model), "head": type(model.head).__name__}
    del settings["classes"], parts["frozen"]
    return parts


def version(kind: type) -> int:
    """The version of a class of the course.

    Raises:
        SettingError: it has been changed since it was imported, so that no version says what it computes.
    """
    if is_patched(kind):
        raise SettingError(
            "model", f"{kind.__name__}, changed since it was imported", "the course's own; yours is a class for model="
        )
    return VERSIONS[kind]


def is_patched(kind: type) -> bool:
    """Whether a method or a module of a class of the course has been replaced from outside, as in a notebook's cell."""
    home = vars(sys.modules[kind.__module__]).values()
    for one in (one for one in home if inspect.isclass(one) and issubclass(one, nn.Module)):
        functions = [member for member in vars(one).values() if inspect.isfunction(member)]
        own = vars(sys.modules[one.__module__])
        if not one.__module__.startswith("labutils.") or any(method.__globals__ is not own for method in functions):
            return True
    return False


def as_made(model: nn.Module, *, head: bool) -> bool:
    """Whether a model is what its class, one of the course's, makes of its settings; weights do not count.

    A student may have changed it since: put another module in, set an attribute, hung in a hook, replaced a method.
    """
    if is_patched(type(model)):
        return False
    with torch.device("meta"):
        made = type(model)(**own_settings(model))
    found, expected = (
        {name: details(module) for name, module in modules(net, head=head).items()} for net in (model, made)
    )
    return found == expected


def details(module: nn.Module) -> tuple[type, dict[str, str], bool]:
    """A module's class, its public attributes as text, and whether hooks may change what it does."""
    attributes = {name: repr(value) for name, value in vars(module).items() if name[0] != "_" and name != "training"}
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return type(module), attributes, any(hooks)


def own_settings(model: nn.Module) -> dict[str, object]:
    """The arguments that a model of the course was made with."""
    return {name: getattr(model, name) for name in inspect.signature(type(model)).parameters}


def frozen(model: nn.Module) -> list[str]:
    """The names of a model's parameters that do not learn."""
    return [name for name, parameter in model.named_parameters() if not parameter.requires_grad]


def modules(model: nn.Module, *, head: bool) -> dict[str, nn.Module]:
    """A model's modules by their names, with or without its head."""
    return {name: module for name, module in model.named_modules() if head or name.partition(".")[0] != "head"}


def shapes(model: nn.Module) -> dict[str, list[int]]:
    """The shape of each tensor of a model, by its name."""
    return {name: list(tensor.shape) for name, tensor in model.state_dict().items()}


def behaviour(model: nn.Module, image_shape: tuple[int, ...]) -> str:
    """A digest of a model's logits, features and gradients for fixed images at fixed weights, in both modes.

    Its source code would not do: helpers of a student's class may stand in other cells of a notebook.

    Args:
        model: gives logits (B, classes), and may have features(images); not changed.
        image_shape: (C, H, W) of the images it sees.

    Returns:
        64 hexadecimal digits, the same on every machine.
    """
    try:
        return measured_behaviour(copy.deepcopy(model).cpu().double(), image_shape, digits=6)
    except RuntimeError:  # it makes float32 tensors of its own, so float64 ones do not go with it
        return measured_behaviour(copy.deepcopy(model).cpu().float(), image_shape, digits=2)


def measured_behaviour(net: nn.Module, image_shape: tuple[int, ...], *, digits: int) -> str:
    """The digest of `behaviour` for a copy that may be changed; `digits` decimals of relative figures count."""
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.default_generator.manual_seed(0)  # torch.manual_seed would change a GPU's random state, too
        set_weights(net)
        dtype = next(net.parameters()).dtype
        images = torch.randn(PROBES, *image_shape, dtype=torch.float64).to(dtype)
        shown = [answers(net, scale * images) for scale in SCALES]
    sha256 = hashlib.sha256()
    for figures in shown:
        largest = max(map(abs, figures)) or 1.0
        rounded = [round(figure / largest, digits) + 0.0 for figure in figures]  # + 0.0: no negative zero
        sha256.update(" ".join(map(str, rounded)).encode())
    return sha256.hexdigest()


def answers(net: nn.Module, images: torch.Tensor) -> list[float]:
    """A number for each tensor that a model gives for images, in both modes: logits, gradients, features."""
    given = []
    for mode in (True, False):
        torch.default_generator.manual_seed(1)  # of dropout
        logits = net.train(mode)(images)
        loss = F.cross_entropy(logits, torch.arange(PROBES) % logits.shape[1])
        learned = [parameter for parameter in net.parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad(loss, learned, allow_unused=True) if learned else ()
        given += [logits, *(gradient for gradient in gradients if gradient is not None)]
        if hasattr(net, "features"):
            given.append(net.features(images))
    return [projection(answer) for answer in given]


@torch.no_grad()
def set_weights(net: nn.Module) -> None:
    """Fill a model's tensors with random numbers of the size that initialisation would give them."""
    parameters = dict(net.named_parameters())
    for name, tensor in net.state_dict().items():
        if name in parameters:
            fan_in = tensor[0].numel() if tensor.ndim > 1 else 1
            tensor.copy_(torch.randn(tensor.shape, dtype=torch.float64) * fan_in**-0.5)
        elif tensor.is_floating_point():  # such as running variances, which are positive
            tensor.copy_(torch.rand(tensor.shape, dtype=torch.float64) + 0.5)
        elif name.endswith("num_batches_tracked"):  # a count of what has been seen, which some normalizations divide by
            tensor.zero_()


def projection(tensor: torch.Tensor) -> float:
    """One number that depends on all of a tensor's and on their order."""
    flat = tensor.detach().double().flatten()
    return (flat @ torch.cos(torch.arange(len(flat), dtype=torch.float64))).item()
