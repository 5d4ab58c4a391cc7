"""A step of training never makes the processor wait for a GPU: nothing in it asks what a tensor holds.

There need not be a GPU: a mode that sees each operation refuses those whose result depends on a tensor's values in a
way that the processor has to know, such as a number to branch on, or a shape.
"""

from contextlib import ExitStack

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import labutils as lab
from labutils.methods.distillation import Distillation, Teacher, cached_answer, consistent_answer
from labutils.training import Callback
from labutils.training.callbacks import WeightAveraging

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


ONE_CYCLE = {"optimizer": "sgd", "lr": 0.1, "scheduler": "onecycle"}
RECIPES = {
    "adam": (lambda: lab.MLP(2, 8, normalization="batch", dropout=0.1), {}),
    "adamw": (lambda: lab.MLP(2, 8, residual=True, residual_scale="zero"), {"optimizer": "adamw", "weight_decay": 0.1}),
    "sgd, one cycle": (resnet, ONE_CYCLE),
    "sgd, one cycle, strong augmentation": (resnet, ONE_CYCLE | {"augment": "strong"}),
    "muon, averaging, smoothing": (
        lambda: lab.ShallowCNN((2, 2, 2)),
        {"optimizer": "muon", "lr": 0.05, "averaging": 0.5, "label_smoothing": 0.1, "whitening": True},
    ),
    "rates by stage": (resnet, ONE_CYCLE | {"stage_lr": 0.5, "augment": "slight"}),
}


def watched(model, data, training, *callbacks, **options):
    """Train for two epochs, with no questions allowed."""
    watch = Watch()
    training = lab.Training(**{"epochs": 2, "batch_size": 50} | training)
    lab.fit(model, data, training, callbacks=[watch, *callbacks], progress=False, **options)
    assert watch.operations > 100


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_step_asks_nothing(recipe, few, shapes):
    build, training = RECIPES[recipe]
    model = build()
    watched(model, few if isinstance(model, lab.MLP) else shapes, training)


@pytest.mark.parametrize("make_answer", [cached_answer, consistent_answer])
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
