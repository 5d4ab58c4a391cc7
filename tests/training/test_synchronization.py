"""A step of training never makes the processor wait for a GPU: nothing in it asks what a tensor holds.

There need not be a GPU. A mode that sees each operation refuses those whose result depends on a tensor's values in a
way that the processor has to know, such as a number to branch on, or a shape. And torch's meta device stands for a GPU:
its tensors have no values to ask for, and do not mix with those of the processor. Where there is an NVIDIA GPU, torch
itself watches it; all but strong augmentation, because torchvision sends the numbers by which it turns images.
"""

import functools
from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import labutils as lab
from labutils.data import augmentation, loading
from labutils.experiments.configs import config_names
from labutils.experiments.settings import read_config
from labutils.methods.distillation import Distillation, Teacher, cached_answer, consistent_answer
from labutils.training import Callback
from labutils.training.callbacks import WeightAveraging
from labutils.training.stop_button import Stopped

aten = torch.ops.aten
ASKING = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten.is_nonzero, aten._unique2}


class NoQuestions(TorchDispatchMode):
    """Refuses operations for whose result the processor would have to wait.

    Args:
        on_host: tensors that are in the processor's memory wherever the model is.
    """

    def __init__(self, on_host):
        super().__init__()
        self.on_host, self.operations = list(on_host), 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        result = operation(*args, **(kwargs or {}))
        self.operations += 1
        if given and all(any(tensor is other for other in self.on_host) for tensor in given):
            self.on_host += [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        elif operation.overloadpacket in ASKING or any(map(is_mask, args[1] if operation in INDEXING else [])):
            raise AssertionError(f"{operation} makes the processor wait for a GPU")
        return result


INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}


def is_mask(index):
    return index is not None and index.dtype in (torch.bool, torch.uint8)


class NoCopies(TorchFunctionMode):
    """Refuses what gives a tensor's values to the processor; where they are there already no operation shows it."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (torch.Tensor.tolist, torch.Tensor.cpu, torch.Tensor.numpy):
            raise AssertionError(f"{function} makes the processor wait for a GPU")
        return function(*args, **(kwargs or {}))


class Watch(Callback):
    """Allows no questions in a step; it is to be the first callback, so that it begins before the others.

    In an epoch's last step the losses so far are looked at, so it does not count.
    """

    operations = 0

    def before_training(self, state):
        self.watched = ExitStack()

    def before_step(self, state):
        if state.step < state.steps - 1:
            averages = [other.average for other in state.callbacks if isinstance(other, WeightAveraging)]
            # torch keeps the count of what it has averaged on the processor.
            self.mode = self.watched.enter_context(NoQuestions(average.n_averaged for average in averages))
            self.watched.enter_context(NoCopies())

    def after_step(self, state):
        self.watched.close()
        self.operations += self.mode.operations

    def after_training(self, state):
        self.watched.close()


def resnet():
    return lab.ResNet((1, 1, 1, 1), width=2)


def shallow():
    return lab.ShallowCNN((2, 2, 2))


ONE_CYCLE = {"optimizer": "sgd", "lr": 0.1, "scheduler": "onecycle"}
MUON = {"optimizer": "muon", "lr": 0.05}
RECIPES = {
    "adam": (lambda: lab.MLP(2, 8, normalization="batch", dropout=0.1), {}),
    "adam, cosine, basic": (resnet, {"scheduler": "cosine", "augment": "basic"}),
    "adamw": (lambda: lab.MLP(2, 8, residual=True, residual_scale="zero"), {"optimizer": "adamw", "weight_decay": 0.1}),
    "sgd, plateau": (resnet, {"optimizer": "sgd", "scheduler": "plateau", "weight_decay": 0.1}),
    "sgd, one cycle": (resnet, ONE_CYCLE),
    "sgd, one cycle, strong augmentation": (resnet, ONE_CYCLE | {"augment": "strong"}),
    "muon, averaging, smoothing": (shallow, MUON | {"averaging": 0.5, "label_smoothing": 0.1, "whitening": True}),
    "muon, triangular, mild": (shallow, MUON | {"scheduler": "triangular", "augment": "mild", "head_lr": 0.5}),
    "rates by stage": (resnet, ONE_CYCLE | {"stage_lr": 0.5, "augment": "slight"}),
}


def shortened(training):
    return lab.Training(**{"epochs": 2, "batch_size": 30} | training)


def watched(model, data, training, *callbacks, **options):
    """Train for two epochs, with no questions allowed."""
    watch = Watch()
    lab.fit(model, data, shortened(training), callbacks=[watch, *callbacks], progress=False, **options)
    assert watch.operations > 100


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_step_asks_nothing(recipe, few, shapes):
    build, training = RECIPES[recipe]
    model = build()
    watched(model, few if isinstance(model, lab.MLP) else shapes, training)


def test_every_recipe_of_the_configs_is_among_these():
    tried = [shortened(training) for _, training in RECIPES.values()]
    for name in config_names():
        base, axes = read_config(name, "laptop", {})
        for training in (one.training for one in (lab.grid(name, profile="laptop") if axes else [base])):
            for setting in ("optimizer", "scheduler", "augment"):
                assert getattr(training, setting) in {getattr(one, setting) for one in tried}, (name, setting)
            for setting in ("averaging", "whitening", "label_smoothing", "weight_decay"):
                assert not getattr(training, setting) or any(getattr(one, setting) for one in tried), (name, setting)
            for setting in ("stage_lr", "head_lr"):
                assert getattr(training, setting) == 1 or any(getattr(one, setting) != 1 for one in tried)


ANSWERS = {
    "cached": cached_answer,
    "shuffled": functools.partial(cached_answer, shuffle_seed=0),
    "consistent": consistent_answer,
}


@pytest.mark.parametrize("make_answer", ANSWERS.values(), ids=ANSWERS)
def test_a_step_with_a_teacher_asks_nothing(make_answer, few):
    teacher = Teacher(make_answer(lab.MLP(1, 8), few), Distillation(teacher="anyone"))
    watched(lab.MLP(2, 8), few, {}, teacher, loss=teacher.loss)


@pytest.mark.parametrize(
    "question",
    [
        lambda state: state.loss.item(),
        lambda state: bool(state.loss > 0),
        lambda state: state.loss.isfinite().all().item(),
        lambda state: state.loss.tolist(),
        lambda state: state.loss.cpu(),
        lambda state: state.loss.numpy(),
        lambda state: state.images[state.images > 0],
        lambda state: state.indices.nonzero(),
        lambda state: torch.equal(state.indices, state.indices),
        lambda state: state.images.masked_select(state.images > 0),
    ],
)
def test_a_question_would_be_noticed(few, question):
    class Asks(Callback):
        def before_step(self, state):
            state.loss = state.images.sum()
            question(state)

    with pytest.raises(AssertionError, match="makes the processor wait"):
        watched(lab.MLP(1, 4), few, {}, Asks())


class NoWaiting(TorchDispatchMode):
    """Refuses to copy a tensor from the processor to the meta device, which with a GPU would be waited for."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        if operation.overloadpacket in (aten._to_copy, aten.copy_):
            target, source = (result, args[0]) if operation.overloadpacket is aten._to_copy else args[:2]
            assert target.device == source.device, f"{operation} makes the processor wait for a GPU: use moved"
        return result


class SomeSteps(Callback):
    """Ends the training before an epoch's last step, after which the losses so far are looked at."""

    def __init__(self):
        self.steps, self.watched = 0, ExitStack()

    def before_step(self, state):
        if state.step == 0:
            self.watched.enter_context(NoWaiting())
        if state.step == state.steps - 1:
            raise Stopped
        self.steps += 1

    def after_training(self, state):
        self.watched.close()


def on(device, data):
    """A data set on a device, whatever that can hold."""

    def put(split):
        return lab.Split(split.images.to(device), split.labels.to(device))

    parts = {part: put(getattr(data, part)) for part in ("train", "validation", "test")}
    return replace(data, **parts, mean=data.mean.to(device), std=data.std.to(device))


def moved_without_waiting(tensor, device):
    return tensor if tensor.device == device else torch.empty_like(tensor, device=device)


@pytest.fixture
def meta(monkeypatch, few, shapes):
    """The digits and the shapes on a device whose tensors have no values, a batch gathered at a time."""
    monkeypatch.setattr(lab.ImageData, "__post_init__", lambda data: None)  # which looks at the labels
    monkeypatch.setattr(loading, "CHUNK", 1)
    for module in (loading, augmentation):
        monkeypatch.setattr(module, "moved", moved_without_waiting)
    for name in ("SGD", "Adam", "AdamW"):  # fused ones are for devices that compute
        whole = getattr(torch.optim, name)
        monkeypatch.setattr(torch.optim, name, lambda groups, fused, whole=whole, **options: whole(groups, **options))
    return on("meta", few), on("meta", shapes)


def fit_some_steps(model, data, training, *callbacks, **options):
    some = SomeSteps()
    lab.fit(model, data, training, callbacks=[some, *callbacks], progress=False, **options)
    assert some.steps >= 2


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_step_needs_no_values_and_makes_each_tensor_where_it_is_used(recipe, meta):
    build, training = RECIPES[recipe]
    model = build()
    training = shortened(training | {"whitening": False})  # which acts before the first step
    fit_some_steps(model, meta[0] if isinstance(model, lab.MLP) else meta[1], training)


def test_a_step_with_a_consistent_teacher_needs_no_values(meta):
    teacher = Teacher(consistent_answer(lab.MLP(1, 8), meta[0]), Distillation(teacher="anyone", consistent=True))
    fit_some_steps(lab.MLP(2, 8), meta[0], shortened({}), teacher, loss=teacher.loss)


@pytest.mark.parametrize("augment", [None, "slight", "strong"])
def test_images_that_do_not_fit_on_the_device_come_a_batch_at_a_time(augment, meta, shapes):
    _, data = meta
    data = replace(data, train=lab.Split(shapes.train.images, data.train.labels))

    class Arrived(Callback):
        def before_step(self, state):
            assert state.images.device == state.indices.device == data.device

    fit_some_steps(resnet(), data, shortened({"augment": augment}), Arrived())


@pytest.mark.parametrize(
    "question",
    [
        lambda state: state.loss.item(),
        lambda state: state.images[state.images > 0],
        lambda state: state.indices.nonzero(),
        lambda state: state.images + torch.ones(30, 1, 28, 28),
        lambda state: state.images.cpu(),
        lambda state: torch.ones(30).to(state.images.device),
    ],
)
def test_values_and_a_tensor_elsewhere_would_be_noticed(meta, question):
    class Asks(Callback):
        def before_step(self, state):
            state.loss = state.images.sum()
            question(state)

    with pytest.raises((RuntimeError, AssertionError), match=r"meta|makes the processor wait"):
        fit_some_steps(lab.MLP(1, 4), meta[0], shortened({}), Asks())


class Alert(Callback):
    """Lets torch raise an error when the processor waits for an NVIDIA GPU, from one step to the last but one."""

    def before_step(self, state):
        torch.cuda.set_sync_debug_mode("default" if state.step == state.steps - 1 else "error")

    def after_training(self, state):
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no NVIDIA GPU here")
@pytest.mark.parametrize("precision", ["fp32", "auto"])
@pytest.mark.parametrize("recipe", [name for name in RECIPES if "strong" not in name])
def test_torch_sees_no_step_wait_for_the_gpu(recipe, precision, few, shapes, monkeypatch):
    monkeypatch.setattr(loading, "CHUNK", 1)
    build, training = RECIPES[recipe]
    model = build()
    data = on("cuda", few if isinstance(model, lab.MLP) else shapes)
    lab.fit(model, data, shortened(training | {"precision": precision}), callbacks=[Alert()], progress=False)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no NVIDIA GPU here")
@pytest.mark.parametrize("make_answer", ANSWERS.values(), ids=ANSWERS)
def test_torch_sees_no_step_with_a_teacher_wait_for_the_gpu(make_answer, few, monkeypatch):
    monkeypatch.setattr(loading, "CHUNK", 1)
    data = on("cuda", few)
    teacher = Teacher(make_answer(lab.MLP(1, 8), data), Distillation(teacher="anyone"))
    lab.fit(lab.MLP(2, 8), data, shortened({}), loss=teacher.loss, callbacks=[Alert(), teacher], progress=False)
