"""The checks of what the notebooks have their readers build: right answers, empty ones, and students' wrong ones."""

import copy
import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

import labutils as lab
from labutils.notebook import exercises
from labutils.notebook.exercises import ours

# Right answers, whose options make the mistakes


class MLP(nn.Module):
    def __init__(
        self, depth, width, in_features=784, classes=10, activation=nn.ReLU, after_head=None, hold=nn.ModuleList
    ):
        super().__init__()
        sizes = [in_features] + [width] * depth
        self.layers = hold([nn.Linear(*pair) for pair in itertools.pairwise(sizes)])
        self.activation, self.after_head = activation(), after_head or nn.Identity()
        self.head = nn.Linear(width, classes)

    def forward(self, images):
        x = images.flatten(1)
        for layer in self.layers:
            x = self.activation(layer(x))
        return self.after_head(self.head(x))


def mlp_with(**options):
    return lambda **sizes: MLP(**sizes, **options)


class TransposedMLP(MLP):
    def __init__(self, depth, width, in_features=784, classes=10):
        super().__init__(depth, width, in_features, classes)
        for layer in self.layers:
            layer.weight = nn.Parameter(layer.weight.detach().T)


class SharedMLP(MLP):
    """One hidden layer that is used again and again."""

    def __init__(self, depth, width, in_features=784, classes=10):
        super().__init__(depth, width, in_features, classes)
        self.layers = nn.ModuleList([self.layers[0]] + [self.layers[1]] * (depth - 1))


def cross_entropy(logits, labels, stable=True, dim=1, sign=-1):
    if stable:
        logits = logits - logits.amax(dim=1, keepdim=True)
    log_p = logits - logits.exp().sum(dim=dim, keepdim=True).log()
    return sign * log_p[torch.arange(len(labels)), labels].mean()


def clamped_cross_entropy(logits, labels):
    return -logits.softmax(1).clamp_min(1e-12).log().gather(1, labels[:, None]).mean()


def layer_backward(x, weight, bias, gradient, relu=True, transposed=False, reduce=torch.sum):
    z = x @ weight.T + bias
    on = gradient * (z > 0) if relu else gradient
    d_weight = on.T @ x
    return on @ weight, d_weight.T if transposed else d_weight, reduce(on, dim=0)


def train_epoch(model, batches, optimizer, clear=True, mode=True, step=True, weighted=True):
    model.train(mode)
    losses = []
    for images, labels in batches:
        loss = F.cross_entropy(model(images), labels)
        if clear:
            optimizer.zero_grad()
        loss.backward()
        if step:
            optimizer.step()
        losses += [loss.item()] * (len(labels) if weighted else 1)
    return sum(losses) / len(losses)


def train_first_batch(model, batches, optimizer):
    model.train()
    for images, labels in batches:
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        return loss.item()


class ResidualLayer(nn.Module):
    def __init__(self, width, wire=lambda x, branch: x + branch.relu()):
        super().__init__()
        self.linear, self.wire = nn.Linear(width, width), wire

    def forward(self, x):
        return self.wire(x, self.linear(x))


def residual_with(wire):
    return lambda width: ResidualLayer(width, wire)


def gradient_norms(
    model, images, labels, remove=True, backwards=False, reduction="mean", of=lambda gradient: gradient.norm()
):
    norms, handles = [], []

    def record(layer, inputs, output):
        output.register_hook(lambda gradient: norms.append(of(gradient).item()))

    handles = [layer.register_forward_hook(record) for layer in model.layers]
    F.cross_entropy(model(images), labels, reduction=reduction).backward()
    for handle in handles if remove else []:
        handle.remove()
    return norms if backwards else norms[::-1]


def weight_norms(model, images, labels):
    F.cross_entropy(model(images), labels).backward()
    return [layer.linear.weight.grad.norm() for layer in model.layers]


def slope(norms):
    logs, layers = norms.log(), torch.arange(len(norms), dtype=norms.dtype)
    layers, logs = layers - layers.mean(), logs - logs.mean()
    return (layers @ logs / (layers @ layers)).item()


def lesion(model, number, images, copied=True, value=lambda x: x):
    other = copy.deepcopy(model) if copied else model

    class Passing(nn.Module):
        def forward(self, x):
            return value(x)

    other.layers[number - 1] = Passing()
    return other(images)


def convolution(images, weight, stride, padding, order=lambda weight: weight.flatten(1)):
    kernel = weight.shape[-1]
    height, width = ((size + 2 * padding - kernel) // stride + 1 for size in images.shape[2:])
    patches = F.unfold(images, kernel, stride=stride, padding=padding)
    return (order(weight) @ patches).unflatten(2, (height, width))


class BatchNorm(nn.Module):
    def __init__(
        self,
        channels,
        axes=(0, 2, 3),
        biased=True,
        kept_biased=False,
        frozen=True,
        running=True,
        momentum=0.1,
        root=None,
        through=True,
        updated=False,
    ):
        super().__init__()
        self.root = root or (lambda var: (var + 1e-5).sqrt())
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.axes, self.biased, self.kept_biased = axes, biased, kept_biased
        self.frozen, self.running, self.momentum = frozen, running, momentum
        self.through, self.updated = through, updated

    def forward(self, x):
        mean, var = x.mean(self.axes, keepdim=True), x.var(self.axes, correction=int(not self.biased), keepdim=True)
        if self.training or not self.frozen:
            self.update(x)
        if not self.through:
            mean, var = mean.detach(), var.detach()
        if (not self.training and self.running) or self.updated:
            mean, var = (tensor.view(-1, 1, 1) for tensor in (self.running_mean, self.running_var))
        return (x - mean) / self.root(var) * self.weight.view(-1, 1, 1) + self.bias.view(-1, 1, 1)

    @torch.no_grad()
    def update(self, x):
        self.running_mean.lerp_(x.mean((0, 2, 3)), self.momentum)
        self.running_var.lerp_(x.var((0, 2, 3), correction=int(not self.kept_biased)), self.momentum)


class GraphKeeping(BatchNorm):
    def update(self, x):
        self.running_mean = 0.9 * self.running_mean + 0.1 * x.mean((0, 2, 3))
        self.running_var = 0.9 * self.running_var + 0.1 * x.var((0, 2, 3))


class Unregistered(BatchNorm):
    def __init__(self, channels):
        super().__init__(channels)
        mean = self.running_mean
        del self.running_mean
        self.running_mean = mean


class Ungraded(BatchNorm):
    """Normalises without a gradient."""

    def forward(self, x):
        with torch.no_grad():
            mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
            if not self.training:
                mean, var = (tensor.view(-1, 1, 1) for tensor in (self.running_mean, self.running_var))
            normalised = (x - mean) / self.root(var)
            if self.training:
                self.update(x)
        return normalised * self.weight.view(-1, 1, 1) + self.bias.view(-1, 1, 1)


def norm_with(**options):
    return lambda channels: BatchNorm(channels, **options)


class Block(nn.Module):
    def __init__(
        self, inputs, width, stride, project=None, skip_stride=None, bias=False, wire=None, between=torch.relu
    ):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=bias)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=bias)
        self.norm2 = nn.BatchNorm2d(width)
        self.skip = nn.Sequential()
        if (inputs != width or stride != 1) if project is None else project:
            self.skip = nn.Sequential(
                nn.Conv2d(inputs, width, 1, skip_stride or stride, bias=False), nn.BatchNorm2d(width)
            )
        self.wire, self.between = wire or (lambda y, skip: torch.relu(y + skip)), between

    def forward(self, x):
        y = self.norm2(self.conv2(self.between(self.norm1(self.conv1(x)))))
        return self.wire(y, self.skip(x))


class NormTwice(Block):
    def forward(self, x):
        y = self.norm1(self.conv2(self.norm1(self.conv1(x)).relu()))
        return (y + self.skip(x)).relu()


def block_with(**options):
    return lambda inputs, width, stride: Block(inputs, width, stride, **options)


def one_cycle(step, steps, peak, share, start=1 / 25, end=1 / 25e4, top=-1, cosine=True):
    middle = share * steps + top
    low, part = (start, step / middle) if step <= middle else (end, (steps - 1 - step) / (steps - 1 - middle))
    part = (1 - math.cos(math.pi * part)) / 2 if cosine else part
    return peak * (low + (1 - low) * part)


def knn(train, labels, queries, k, largest=False, distance=lambda q, t: (t**2).sum(1) - 2 * q @ t.T):
    nearest = distance(queries, train).topk(k, largest=largest).indices
    return labels[nearest].mode(dim=1)[0]


def freeze(net, stages, norms=True, learning=None, thaw=True):
    parts = [net.head, *net.stages[len(net.stages) - max(stages, 0) :]] if learning is None else learning(net, stages)
    for parameter in net.parameters():
        if thaw or stages != -1:
            parameter.requires_grad_(stages == -1)
    for part in parts:
        part.requires_grad_(True)
    net.train()
    for module in net.modules():
        if norms and isinstance(module, nn.BatchNorm2d) and not module.weight.requires_grad:
            module.eval()
    return net


def set_on_modules(net, stages):
    for part in (net.stem, *net.stages, net.head):
        part.requires_grad = part is net.head
    return net.train()


def probe(features, labels, classes, decay, steps=300, detach=True, half=1 / 2, bias=True):
    head = nn.Linear(features.shape[1], classes, bias=bias)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    features = features.detach() if detach else features
    for _ in range(steps):
        loss = F.cross_entropy(head(features), labels) + half * decay * head.weight.square().sum()
        optimizer.zero_grad()
        loss.backward(retain_graph=True)
        optimizer.step()
    return head


def distillation(student, teacher, labels, temperature, alpha, power=2, swapped=False, hard_at=1, mean=torch.sum):
    p, q = (teacher / temperature).softmax(1), (student / temperature).softmax(1)
    if swapped:
        p, q = q, p
    divergence = mean(p * (p.log() - q.log()), dim=1).mean()
    hard = F.cross_entropy(student / (temperature if hard_at is None else hard_at), labels)
    return (1 - alpha) * hard + alpha * divergence * temperature**power


def kl_div(
    student, teacher, labels, temperature, alpha, reduction="batchmean", log=True, dim=1, teachers=None, students=None
):
    q, p = (teacher / (teachers or temperature)).softmax(dim), (student / (students or temperature)).softmax(dim)
    divergence = F.kl_div(p.log() if log else p, q, reduction=reduction)
    return (1 - alpha) * F.cross_entropy(student, labels) + alpha * divergence * temperature**2


def cached_teacher(teacher, images, batch_size, mode=False, again=False, drop=0, no_grad=True, lookup=lambda i: i):
    teacher.train(mode)
    with torch.set_grad_enabled(not no_grad):
        batches = images[: len(images) - drop].split(batch_size)
        logits = torch.cat([teacher(batch) for batch in batches])
    return lambda indices: teacher(images[indices]) if again else logits[lookup(indices)]


def temperature_scaling(logits, labels, inverse=False):
    log_t = torch.zeros(1, requires_grad=True)
    solver = torch.optim.LBFGS([log_t], max_iter=100, line_search_fn="strong_wolfe")

    def loss():
        solver.zero_grad()
        value = F.cross_entropy(logits * log_t.exp() if inverse else logits / log_t.exp(), labels)
        value.backward()
        return value

    solver.step(loss)
    return log_t.exp().item()


RIGHT = {
    "check_mlp": MLP,
    "check_cross_entropy": cross_entropy,
    "check_layer_backward": layer_backward,
    "check_train_epoch": train_epoch,
    "check_residual_layer": ResidualLayer,
    "check_gradient_norms": gradient_norms,
    "check_rate": lambda norms: math.exp(-slope(norms)),
    "check_he_weights": lambda outputs, inputs: torch.randn(outputs, inputs) * (2 / inputs) ** 0.5,
    "check_lesion": lesion,
    "check_convolution": convolution,
    "check_batch_norm": BatchNorm,
    "check_residual_block": Block,
    "check_one_cycle": one_cycle,
    "check_knn": knn,
    "check_freeze": freeze,
    "check_probe": probe,
    "check_distillation_loss": distillation,
    "check_cached_teacher": cached_teacher,
    "check_temperature_scaling": temperature_scaling,
}
READY = {  # what the notebooks let stand in for an answer that is not right
    "check_mlp": lab.MLP,
    "check_cross_entropy": F.cross_entropy,
    "check_layer_backward": ours.layer_backward,
    "check_train_epoch": ours.train_epoch,
    "check_residual_layer": ours.residual_layer,
    "check_gradient_norms": ours.gradient_norms,
    "check_rate": ours.rate,
    "check_he_weights": ours.he_weights,
    "check_lesion": ours.lesion,
    "check_convolution": F.conv2d,
    "check_batch_norm": nn.BatchNorm2d,
    "check_residual_block": ours.residual_block,
    "check_one_cycle": ours.one_cycle,
    "check_knn": ours.knn,
    "check_freeze": ours.freeze,
    "check_probe": ours.probe,
    "check_distillation_loss": lab.distillation_loss,
    "check_cached_teacher": ours.cached_teacher,
    "check_temperature_scaling": ours.best_temperature,
}
CLASSES = ("check_mlp", "check_residual_layer", "check_batch_norm", "check_residual_block")


def by_forward(teacher, images, size):
    with torch.no_grad():
        kept = torch.cat([teacher.eval().forward(batch) for batch in images.split(size)])
    return lambda indices: kept[indices]


def with_options(right, **options):
    """A right answer with a mistake."""
    return lambda *arguments, **settings: right(*arguments, **settings, **options)


WRONG = {  # by what the verdict has to say
    "check_mlp": {
        "finds 2 tensors, not": mlp_with(hold=list),
        "linear layers, the head among them": lambda depth, **sizes: MLP(depth=depth + 1, **sizes),
        "one used twice counts once": SharedMLP,
        "should have the shape": TransposedMLP,
        "no ReLU between the layers": mlp_with(activation=nn.Identity),
        "ReLU after the head": mlp_with(after_head=nn.ReLU()),
        "you give probabilities": mlp_with(after_head=nn.Softmax(dim=1)),
        "off by up to": mlp_with(activation=nn.Tanh),
        "unexpected keyword": lambda depth, width: MLP(depth, width),
        "Module is expected": lambda **sizes: [nn.Linear(2, 2)],
    },
    "check_cross_entropy": {
        "runs over the images (dim=0)": with_options(cross_entropy, stable=False, dim=0),
        "the sign is wrong": with_options(cross_entropy, sign=1),
        "around 1,000 the loss": with_options(cross_entropy, stable=False),
        "no float holds": clamped_cross_entropy,
        "that is the sum over the images": with_options(F.cross_entropy, reduction="sum"),
        "one loss for each image": with_options(F.cross_entropy, reduction="none"),
        "softmax is taken twice": lambda logits, labels: F.cross_entropy(logits.softmax(1), labels),
        "backward() can't go through": lambda logits, labels: F.cross_entropy(logits, labels).item(),
        "torch.tensor(...)": lambda logits, labels: torch.tensor(F.cross_entropy(logits, labels).item()),
    },
    "check_layer_backward": {
        "to x forgets the ReLU": with_options(layer_backward, relu=False),
        "to W is transposed": with_options(layer_backward, transposed=True),
        "to b is a sum over the images; yours is their mean": with_options(layer_backward, reduce=torch.mean),
        "three tensors": lambda *given: layer_backward(*given)[0],
        "to W is a sum over the images": lambda x, *given: [
            part / number for part, number in zip(layer_backward(x, *given), (1, len(x), 1), strict=True)
        ],
    },
    "check_train_epoch": {
        "zero_grad() belongs into each step": with_options(train_epoch, clear=False),
        "does optimizer.step() run?": with_options(train_epoch, step=False, mode=False),
        "evaluation mode": with_options(train_epoch, mode=False),
        "only the first batch": train_first_batch,
        "mean over the batches": with_options(train_epoch, weighted=False),
        "gone through only once": lambda net, batches, optimizer: len(list(batches)),
        "holds on to the graph": lambda *given: torch.tensor(train_epoch(*given), requires_grad=True),
        "a number is expected, not None": lambda *given: [train_epoch(*given)][1:] or None,
    },
    "check_residual_layer": {
        "added before the ReLU": residual_with(lambda x, branch: (x + branch).relu()),
        "there is no skip": residual_with(lambda x, branch: branch.relu()),
        "no ReLU in the branch": residual_with(lambda x, branch: x + branch),
        "the skip passes through the ReLU": residual_with(lambda x, branch: x.relu() + branch.relu()),
        "in place": residual_with(lambda x, branch: x.add_(branch.relu())),
        "finds 4 tensors, not 2": lambda width: nn.Sequential(nn.Linear(width, width), nn.Linear(width, width)),
    },
    "check_gradient_norms": {
        "order in which backward()": with_options(gradient_norms, backwards=True),
        "remove() on each handle": with_options(gradient_norms, remove=False),
        "a sum over the images": with_options(gradient_norms, reduction="sum"),
        "with respect to the weights": weight_norms,
        "squared norms": with_options(gradient_norms, of=lambda gradient: gradient.square().sum()),
        "of the shape": lambda *given: gradient_norms(*given)[1:],
    },
    "check_rate": {
        "take 1 over it": lambda norms: math.exp(slope(norms)),
        "exp of minus the slope": lambda norms: -slope(norms),
        "the first and the last norm alone": lambda norms: (norms[0] / norms[-1]) ** (1 / (len(norms) - 1)),
        "mean of the ratios": lambda norms: (norms[:-1] / norms[1:]).mean(),
        "logarithms are mixed": lambda norms: 10 ** -slope(norms),
        "an array of one": lambda norms: torch.tensor([math.exp(-slope(norms))]),
    },
    "check_he_weights": {
        "without a ReLU": lambda outputs, inputs: torch.randn(outputs, inputs) / inputs**0.5,
        "not the outputs": lambda outputs, inputs: torch.randn(outputs, inputs) * (2 / outputs) ** 0.5,
        "take its root": lambda outputs, inputs: torch.randn(outputs, inputs) * 2 / inputs,
        "He's standard deviation": lambda outputs, inputs: torch.randn(outputs, inputs) * (2 / inputs) ** 0.25,
        "Glorot's": lambda outputs, inputs: torch.randn(outputs, inputs) * (2 / (inputs + outputs)) ** 0.5,
        "a third of what": lambda outputs, inputs: (2 * torch.rand(outputs, inputs) - 1) * (2 / inputs) ** 0.5,
        "the mean is": lambda outputs, inputs: (2 / inputs) ** 0.5 * (torch.randn(outputs, inputs) + 1),
        "multiplies the mean square by 3": lambda outputs, inputs: torch.randn(outputs, inputs) * (6 / inputs) ** 0.5,
        "of the shape": lambda outputs, inputs: torch.randn(inputs, outputs) * (2 / inputs) ** 0.5,
    },
    "check_lesion": {
        "counted from 1, lists from 0": lambda model, number, images: lesion(model, number + 1, images),
        "nothing is left out": lambda model, number, images: model(images),
        "gives zeros": with_options(lesion, value=torch.zeros_like),
        "the network has changed": with_options(lesion, copied=False),
        "everything from this layer on": lambda model, number, images: model.head(
            model.layers[: number - 1](images.flatten(1))
        ),
    },
    "check_convolution": {
        "the kernel is turned round": lambda images, weight, **o: convolution(images, weight.flip(2, 3), **o),
        "rows and columns are swapped": lambda images, weight, **o: convolution(images, weight.transpose(2, 3), **o),
        "stride 2, padding 0: the stride is left out": lambda images, weight, stride, padding: convolution(
            images, weight, 1, padding
        ),
        "stride 1, padding 1: the padding is left out": lambda images, weight, stride, padding: convolution(
            images, weight, stride, 0
        ),
        "height and width of the output": lambda *given, **options: convolution(*given, **options).transpose(2, 3),
        "height comes before": lambda *given, **o: (
            convolution(*given, **o).transpose(2, 3).reshape(convolution(*given, **o).shape)
        ),
        "in another order than a patch's": with_options(
            convolution, order=lambda weight: weight.permute(0, 2, 3, 1).flatten(1)
        ),
        "places and channels are mixed up": lambda *given, **o: (
            convolution(*given, **o).flatten(2).transpose(1, 2).reshape(convolution(*given, **o).shape)
        ),
        "the formula sums them": with_options(convolution, order=lambda weight: weight.flatten(1) / weight[0].numel()),
        "off by up to": with_options(convolution, order=lambda weight: weight.flatten(1).flip(0)),
    },
    "check_batch_norm": {
        "in evaluation mode your running_mean changed": norm_with(frozen=False),
        "in evaluation mode you normalise by the batch's": norm_with(running=False),
        "unbiased variance": norm_with(biased=False),
        "running_var takes the biased variance": norm_with(kept_biased=True),
        "each image is normalised by itself": norm_with(axes=(2, 3)),
        "each place has statistics": norm_with(axes=(0,)),
        "running_mean moves by nine tenths": norm_with(momentum=0.9),
        "running_mean has not changed": norm_with(momentum=0.0),
        "holds on to the batch": GraphKeeping,
        "running_mean should be a buffer": Unregistered,
        "weight and bias should be learnt": lambda channels: nn.BatchNorm2d(channels, affine=False),
        "but not its gradient": norm_with(through=False),
        "only the update of the running statistics": Ungraded,
        "statistics just updated": norm_with(updated=True),
        "eps belongs under": norm_with(root=lambda var: var.sqrt() + 1e-5),
    },
    "check_residual_block": {
        "added after the last ReLU": block_with(wire=lambda y, skip: y.relu() + skip),
        "the ReLU after the sum is missing": block_with(wire=lambda y, skip: y + skip),
        "the skip is left out": block_with(wire=lambda y, skip: y.relu()),
        "ReLU between the two": block_with(between=lambda y: y),
        "has it the block's stride?": block_with(skip_stride=1),
        "stride 2: the module has no skip.0.weight": block_with(project=False),
        "3 -> 3 channels, stride 2: the module has no skip.0.weight": lambda inputs, width, stride: Block(
            inputs, width, stride, project=inputs != width
        ),
        "norm1 is used twice": NormTwice,
        "the module has skip.0.weight, which nothing needs": block_with(project=True),
        "the module has conv1.bias": block_with(bias=True),
        "changes its input in place": block_with(wire=lambda y, skip: skip.add_(y).relu()),
        "is part of it detached": block_with(wire=lambda y, skip: (y + skip.detach()).relu()),
    },
    "check_one_cycle": {
        "(the start, peak / 25)": with_options(one_cycle, start=0),
        "(the end, peak / 25 / 10,000)": with_options(one_cycle, end=1 / 25),
        "(the peak)": with_options(one_cycle, top=2),
        "on the way": with_options(one_cycle, cosine=False),
    },
    "check_knn": {
        "the votes of the farthest": with_options(knn, largest=True),
        "a dot product is no distance": with_options(knn, distance=lambda q, t: -q @ t.T),
        "compare directions": with_options(knn, distance=lambda q, t: -F.normalize(q) @ F.normalize(t).T),
        "only one neighbour votes": lambda train, labels, queries, k: knn(train, labels, queries, 1),
        "their labels are asked for": lambda train, labels, queries, k: torch.cdist(queries, train).argmin(1),
        "of the shape (50,)": lambda train, labels, queries, k: labels[torch.cdist(train, queries).argmin(1)],
    },
    "check_freeze": {
        "its running mean changed": with_options(freeze, norms=False),
        "it belongs in training mode": lambda net, stages: freeze(net, stages).eval(),
        "head.weight should learn": with_options(freeze, learning=lambda net, n: net.stages[4 - n :] if n else []),
        "and still learns": with_options(freeze, learning=lambda net, n: [net.head, *net.stages[: max(n, 0)]]),
        "should learn, and is frozen": with_options(freeze, thaw=False),
        "call part.requires_grad_(": set_on_modules,
        "expected back": lambda net, stages: freeze(copy.deepcopy(net), stages),
    },
    "check_probe": {
        "has not learnt anything": with_options(probe, steps=0),
        "detach() them": with_options(probe, detach=False),
        "its weights are too long": with_options(probe, half=0, steps=1000),
        "take more steps": with_options(probe, half=5),
        "not decay / 2 times": with_options(probe, half=1),
        "needs a bias": with_options(probe, bias=False),
        "Linear(": lambda features, labels, classes, decay: nn.Linear(classes, features.shape[1]),
    },
    "check_distillation_loss": {
        "temperature 4, alpha 1: the teacher's term lacks the factor T^2": with_options(distillation, power=0),
        "the factor T instead of T^2": with_options(distillation, power=1),
        "KL(teacher || student)": with_options(distillation, swapped=True),
        "alpha and 1 - alpha are swapped": lambda *given, temperature, alpha: distillation(
            *given, temperature, 1 - alpha
        ),
        "softened, too": with_options(distillation, hard_at=None),
        "averaged over the classes": with_options(distillation, mean=torch.mean),
        "average over them": lambda *given, **settings: kl_div(*given, **settings, reduction="sum"),
        "log-probabilities first": lambda *given, **settings: kl_div(*given, **settings, log=False),
        "(dim=0)": with_options(kl_div, dim=0),
        "only the student's logits": with_options(kl_div, teachers=1),
        "only the teacher's logits": with_options(kl_div, students=1),
        "T^2 belongs to": lambda *given, temperature, alpha: (
            temperature**2 * distillation(*given, temperature, alpha, power=0)
        ),
        "can't go through": lambda *given, **settings: distillation(*given, **settings).item(),
    },
    "check_cached_teacher": {
        "asked again for each batch": with_options(cached_teacher, again=True),
        "in training mode": with_options(cached_teacher, mode=True),
        "not by its forward method": by_forward,
        "not each of the": lambda teacher, images, size: cached_teacher(teacher, torch.cat([images, images]), size),
        "torch.no_grad()": with_options(cached_teacher, no_grad=False),
        "the first answers": with_options(cached_teacher, lookup=lambda indices: torch.arange(len(indices))),
        "IndexError": with_options(cached_teacher, drop=5),
        "images at once": lambda teacher, images, size: cached_teacher(teacher, images, len(images)),
    },
    "check_temperature_scaling": {
        "T divides them": with_options(temperature_scaling, inverse=True),
        "nothing is mended": lambda logits, labels: 1.0,
        "at your T = 3": lambda logits, labels: 3.0,
        "Search more finely": lambda logits, labels: 1.1 * temperature_scaling(logits, labels),
        "above 0 is expected": lambda logits, labels: -1,
        "holds on to the graph": lambda *given: torch.tensor(temperature_scaling(*given), requires_grad=True),
    },
}


def empty(name):
    """The stub of a check as a notebook hands it out."""

    class Empty(nn.Module):
        def __init__(self, *arguments, **options):
            super().__init__()
            raise NotImplementedError

    def stub(*arguments, **options):
        raise NotImplementedError

    return Empty if name in CLASSES else stub


class NoForward(nn.Module):
    """What a student has who wrote the first half of a class."""

    def __init__(self, *arguments, **options):
        super().__init__()


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_answer_passes(name):
    verdict = getattr(exercises, name)(RIGHT[name])
    assert verdict, verdict


def test_a_head_may_begin_at_zero():
    class ZeroHead(MLP):
        def __init__(self, *sizes, **named):
            super().__init__(*sizes, **named)
            nn.init.zeros_(self.head.weight)

    assert exercises.check_mlp(ZeroHead)


@pytest.mark.parametrize("name", RIGHT)
def test_what_stands_in_is_right(name):
    assert getattr(exercises, name)(READY[name])


@pytest.mark.parametrize("name", RIGHT)
def test_the_empty_answer_is_none(name):
    for nothing in (None, ..., empty(name)):
        verdict = getattr(exercises, name)(nothing)
        assert not verdict
        assert verdict.message == "no answer so far"
    for nothing in (lambda *arguments, **options: None, lambda *arguments, **options: ..., NoForward):
        assert not getattr(exercises, name)(nothing)


@pytest.mark.parametrize(("name", "telling"), [(name, telling) for name in WRONG for telling in WRONG[name]])
def test_a_wrong_answer_is_told_its_own_mistake(name, telling):
    verdict = getattr(exercises, name)(WRONG[name][telling])
    assert not verdict
    assert telling in verdict.message


def test_each_check_rejects_three_mistakes_or_more():
    assert set(WRONG) == set(RIGHT) == set(READY)
    assert all(len(mistakes) >= 3 for mistakes in WRONG.values())


class Expanded(BatchNorm):
    def __init__(self, channels):
        super().__init__(channels)
        self.running_mean = torch.zeros(1).expand(channels)  # which can't be written to


class Failing(nn.Linear):
    def forward(self, x):
        raise SystemExit(3)


def gutted(net, stages):
    freeze(net, stages)
    del net.stages
    return net


@pytest.mark.parametrize(
    ("name", "answer", "telling"),
    [
        ("check_batch_norm", Expanded, "stopped with RuntimeError"),
        ("check_mlp", lambda **sizes: MLP(**sizes).to("meta"), "stopped with NotImplementedError: Cannot copy"),
        ("check_mlp", lambda **sizes: NoForward().train(False), "finds 0 tensors"),
        ("check_mlp", lambda **sizes: nn.LazyLinear(3), "stopped with RuntimeError: Can't access the shape"),
        ("check_residual_layer", nn.LazyLinear, "stopped with RuntimeError: Can't access the shape"),
        (
            "check_residual_block",
            lambda *sizes: nn.LazyConv2d(3, 3),
            "stopped with RuntimeError: Can't access the shape",
        ),
        ("check_probe", lambda features, labels, classes, decay: Failing(features.shape[1], classes), "SystemExit: 3"),
        ("check_freeze", gutted, "stopped with"),
        ("check_cached_teacher", lambda *given: lambda indices: torch.full((7, 4), math.nan), "is not asked"),
        ("check_temperature_scaling", lambda *given: math.nan, "above 0 is expected"),
        ("check_he_weights", lambda *sizes: torch.full(sizes, math.inf), "variance nan"),
    ],
)
def test_whatever_goes_wrong_inside_is_a_verdict(name, answer, telling):
    verdict = getattr(exercises, name)(answer)
    assert not verdict
    assert telling in verdict.message


@pytest.mark.parametrize("name", RIGHT)
def test_a_check_neither_changes_nor_uses_the_random_state(name):
    verdicts = set()
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        verdicts.add(repr(getattr(exercises, name)(RIGHT[name])))
        verdicts.add(repr(getattr(exercises, name)(next(iter(WRONG[name].values())))))
        assert before.equal(torch.get_rng_state())
    assert len(verdicts) == 2


def test_an_answer_may_change_torchs_state_and_be_asked_without_gradients():
    def careless(logits, labels):
        torch.manual_seed(7)
        torch.set_grad_enabled(True)
        return cross_entropy(logits, labels)

    before = torch.get_rng_state()
    with torch.no_grad():
        assert exercises.check_cross_entropy(careless)
        assert not torch.is_grad_enabled()
    assert before.equal(torch.get_rng_state())


# What goes on where an answer is not right


def test_a_right_answer_is_used(capsys):
    assert exercises.check_mlp(MLP).or_else(lab.MLP) is MLP
    assert "STANDS IN" not in capsys.readouterr().out


@pytest.mark.parametrize("answer", [None, empty("check_mlp"), TransposedMLP])
def test_what_stands_in_says_so_loudly(answer, capsys):
    assert exercises.check_mlp(answer).or_else(lab.MLP) is lab.MLP
    printed = capsys.readouterr().out
    assert "✗ not yet" in printed
    assert "NOT SOLVED YET: a ready-made MLP STANDS IN" in printed


def test_a_wrong_answer_is_used_where_its_reader_wants_to_see_what_it_does(capsys):
    wrong = residual_with(lambda x, branch: (x + branch).relu())
    assert exercises.check_residual_layer(wrong).or_else(ours.residual_layer, anyway=True) is wrong
    assert "USED ANYWAY" in capsys.readouterr().out
    nothing = empty("check_residual_layer")
    assert exercises.check_residual_layer(nothing).or_else(ours.residual_layer, anyway=True) is ours.residual_layer


class OwnMLP(MLP):
    """As a student writes it: with the settings that it takes and no others."""

    def __init__(self, depth, width, in_features=784, classes=10):
        super().__init__(depth, width, in_features, classes)


class MiswiredMLP(OwnMLP):
    def forward(self, images):
        return super().forward(images).relu()


def test_what_a_student_built_goes_into_an_experiment(store, experiment):
    runs = [lab.run(experiment, model=model, progress=False) for model in (None, OwnMLP, MiswiredMLP)]
    assert len({run.path for run in runs}) == 3
    course, own, miswired = (run.history.frame["train_loss"].tolist() for run in runs)
    assert own == pytest.approx(course, rel=1e-3)
    assert miswired != pytest.approx(course, rel=1e-2)
