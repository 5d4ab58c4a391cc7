"""Networks trained as one must learn what each learns alone."""

import copy
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import labutils as lab
from labutils.stacks import MLPStack, stack_shape

FIGURES = ["train_loss", "validation_loss", "train_accuracy", "validation_accuracy", "lr"]


def nets(seeds, **shape):
    models = []
    for seed in seeds:
        torch.manual_seed(seed)
        models.append(lab.MLP(**{"depth": 3, "width": 16, **shape}))
    return models


def differ(first, second, figures=FIGURES):
    return (first.frame[figures] - second.frame[figures]).abs().max().max()


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    depth=st.integers(1, 4),
    residual=st.booleans(),
    normalization=st.sampled_from([None, "batch", "layer"]),
    activation=st.sampled_from(["relu", "tanh", "gelu", "sigmoid"]),
    residual_scale=st.sampled_from([1.0, 0.3, 0.0, "depth", "zero"]),
    optimizer=st.sampled_from(["adam", "adamw", "sgd"]),
    scheduler=st.sampled_from([None, "cosine", "onecycle", "triangular"]),
    label_smoothing=st.sampled_from([0.0, 0.1]),
    weight_decay=st.sampled_from([0.0, 0.01]),
)
def test_a_stack_learns_what_its_nets_learn_alone(
    digits, one_thread, optimizer, scheduler, label_smoothing, weight_decay, **shape
):
    trainings = [
        lab.Training(
            epochs=2,
            batch_size=100,  # the last batch is smaller
            optimizer=optimizer,
            scheduler=scheduler,
            label_smoothing=label_smoothing,
            weight_decay=weight_decay,
            seed=seed,
        )
        for seed in range(3)
    ]
    alone = nets(range(3), **shape)
    together = lab.fit_stack(nets(range(3), **shape), digits, trainings)
    for model, history, training in zip(alone, together, trainings, strict=True):
        expected = lab.fit(model, digits, training, progress=False)
        assert differ(history, expected, ["train_loss", "lr"]) < 1e-4
        assert differ(history, expected, ["train_accuracy"]) < 3e-3
        # Adam makes steps of the rounding of gradients that are 0, as before batch normalization.
        if shape["normalization"] != "batch" or optimizer == "sgd":
            assert differ(history, expected) < 5e-3


def test_one_step_agrees_to_rounding(digits, one_thread):
    shape = {"normalization": "batch", "residual": True, "depth": 10}
    stacked, alone = nets(range(4), **shape), nets(range(4), **shape)
    batches = [
        next(lab.batches(digits.train, digits, 64, generator=torch.Generator().manual_seed(seed))) for seed in range(4)
    ]
    logits = MLPStack(stacked)(torch.stack([images for images, _ in batches]))
    for model, twin, (images, _), theirs in zip(stacked, alone, batches, logits, strict=True):
        twin.train()
        assert torch.allclose(theirs, twin(images), atol=1e-5, rtol=1e-5)
        for (name, buffer), other in zip(model.named_buffers(), twin.buffers(), strict=True):
            assert torch.allclose(buffer, other, atol=1e-6), name


def test_initialisations_and_scales_may_differ(digits, one_thread):
    def build():
        return [
            *nets([0], residual=True, residual_scale=0.25),
            *nets([1], residual=True, init="he"),
            *nets([2], residual=True, residual_scale="depth"),
            *nets([3], residual=True, residual_scale=0.0),
        ]

    trainings = [lab.Training(epochs=2, seed=seed) for seed in (5, 6, 7, 8)]
    together = lab.fit_stack(build(), digits, trainings)
    for model, history, training in zip(build(), together, trainings, strict=True):
        assert differ(history, lab.fit(model, digits, training, progress=False)) < 1e-3


def test_a_net_that_diverges_leaves_the_others_alone(digits, one_thread):
    models = nets(range(3))
    torch.nn.init.constant_(models[1].head.weight, math.nan)
    trainings = [lab.Training(epochs=2, seed=seed) for seed in range(3)]
    first, ill, last = lab.fit_stack(models, digits, trainings)
    assert isinstance(ill, lab.Diverged)
    assert ill.epoch == 1
    for history, model, training in zip((first, last), nets([0, 2]), (trainings[0], trainings[2]), strict=True):
        assert differ(history, lab.fit(model, digits, training, progress=False)) < 1e-3


def test_each_net_stops_when_its_own_patience_runs_out(digits, one_thread):
    def build():
        return nets(range(2), depth=1, width=4)

    trainings = [lab.Training(epochs=30, lr=0.3, patience=2, seed=seed) for seed in range(2)]
    together = lab.fit_stack(build(), digits, trainings)
    for model, history, training in zip(build(), together, trainings, strict=True):
        alone = lab.fit(model, digits, training, progress=False)
        assert (len(history.rows), history.stopped_early) == (len(alone.rows), alone.stopped_early)
    assert any(history.stopped_early for history in together)


def test_the_best_epochs_weights_are_left_in_memory_of_their_own(digits):
    models = nets(range(2), normalization="batch")
    histories = lab.fit_stack(models, digits, [lab.Training(epochs=4, lr=0.05, seed=seed) for seed in range(2)])
    for model, history in zip(models, histories, strict=True):
        assert lab.evaluate(model, "validation", digits)["top1"] == history.best["validation_accuracy"]
        assert all(parameter.is_contiguous() and parameter.requires_grad for parameter in model.parameters())
    before = copy.deepcopy(models[1].state_dict())
    with torch.no_grad():
        models[0].layers[0].linear.weight.zero_()
    assert all(torch.equal(before[name], tensor) for name, tensor in models[1].state_dict().items())


@pytest.mark.parametrize(
    ("shape", "training"),
    [
        ({"dropout": 0.1}, {}),
        ({}, {"scheduler": "plateau"}),
        ({}, {"augment": "basic"}),
        ({}, {"precision": "bf16"}),
    ],
)
def test_what_cannot_be_stacked_is_refused(digits, shape, training):
    trainings = [lab.Training(epochs=1, **training, seed=seed) for seed in range(2)]
    assert stack_shape(nets([0], **shape)[0], trainings[0]) is None
    with pytest.raises(lab.SettingError, match="models"):
        lab.fit_stack(nets(range(2), **shape), digits, trainings)


def test_nets_of_two_shapes_are_refused(digits):
    with pytest.raises(lab.SettingError, match="models"):
        lab.fit_stack([*nets([0]), *nets([1], width=8)], digits, [lab.Training(epochs=1), lab.Training(epochs=1)])
