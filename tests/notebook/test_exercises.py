"""The exercises' checks: right answers, and the wrong ones that students give."""

import copy
import math

import numpy as np
import pandas as pd
import pytest
import torch

import labutils as lab
from labutils.methods.distillation import mean_entropy
from labutils.notebook import exercises
from labutils.notebook.exercises import check_choice_of_model, check_floor, check_parameters
from labutils.notebook.exercises.cnn import measured_receptive_field

RESULTS = pd.DataFrame(
    [
        {"depth": depth, "width": width, "parameters": parameters, "validation_top1": accuracy + spread}
        for depth, width, parameters, accuracy in ((1, 8, 100, 0.90), (2, 8, 150, 0.96), (1, 32, 400, 0.97))
        for spread in (-0.02, 0.0, 0.02)
    ]
)


def right_parameters(depth, width):
    return 784 * width + width + (depth - 1) * (width * width + width) + 10 * width + 10


def fails(*arguments):
    raise TypeError("no idea")


def assert_rejected(verdict, word):
    """A wrong answer is told so, and why."""
    assert not verdict
    assert word in verdict.message


def test_parameters():
    assert check_parameters(right_parameters)
    for wrong in (
        None,
        lambda depth, width: depth * width,
        lambda depth, width: right_parameters(depth, width) - 10,  # the head's biases forgotten
        lambda depth, width: right_parameters(depth + 1, width),  # one hidden layer too many
        fails,
    ):
        assert not check_parameters(wrong)


def test_floor():
    assert check_floor(lambda labels: labels.bincount().max().item() / len(labels))
    for wrong in (None, lambda labels: 1 / len(labels.unique()), lambda labels: 0.1135, lambda labels: "high", fails):
        assert not check_floor(wrong)
    assert check_floor(lambda labels: (labels == labels.mode()[0]).double().mean())


@pytest.mark.parametrize(
    ("answer", "right", "word"),
    [
        ((2, 8), True, "150"),
        (None, False, "no answer"),
        ((1, 32), False, "fewer than 400"),  # meets the target, but is not the smallest
        ((1, 8), False, "below 95.0%"),
        ((7, 7), False, "the results hold"),
        ("deep", False, "the results hold"),
    ],
)
def test_choice_of_model(answer, right, word):
    verdict = check_choice_of_model(answer, RESULTS, target=0.95)
    assert bool(verdict) is right
    assert word in repr(verdict)


def test_a_verdict_says_what_stopped_a_function():
    assert "TypeError: no idea" in repr(check_floor(fails))
    assert isinstance(check_parameters(lambda depth, width: torch.nan).message, str)


def test_the_plain_rate_is_checked_against_nets_that_are_measured():
    assert exercises.check_plain_rate(lambda a: a / math.sqrt(6))
    for wrong in (lambda a: a / math.sqrt(3), lambda a: a * a / 6, lambda a: 0.408, lambda a: None):
        assert not exercises.check_plain_rate(wrong)
    assert not exercises.check_plain_rate(None)
    assert "ZeroDivisionError" in exercises.check_plain_rate(lambda a: 1 / 0).message


def test_the_growth_is_checked_against_layers_that_are_measured():
    def added(square):
        return math.sqrt(square / (6 * math.pi))

    assert exercises.check_growth(lambda m, q: (m + added(q), q + 2 * m * added(q) + q / 6))
    independent = exercises.check_growth(lambda m, q: (m + added(q), q + q / 6))
    assert not independent
    assert "as if their product were 0" in independent.message
    assert not exercises.check_growth(lambda m, q: (m, q + q / 6))
    assert not exercises.check_growth(lambda m, q: q)
    assert not exercises.check_growth(lambda m, q: (math.nan, q + 2 * m * added(q) + q / 6))
    assert not exercises.check_growth(None)


def test_the_last_depth_is_the_first_at_which_no_seed_learns():
    results = pd.DataFrame({"depth": [1, 1, 2, 2, 3, 3], "validation_top1": [0.9, 0.9, 0.1, 0.8, 0.1, 0.11]})
    results = pd.concat([results, pd.DataFrame({"depth": [4], "validation_top1": [0.1]})])
    assert exercises.check_last_depth(3, results)
    for wrong, word in ((2, "80.0%"), (4, "first"), (7, "hold")):
        assert_rejected(exercises.check_last_depth(wrong, results), word)
    assert not exercises.check_last_depth(None, results)


def test_the_cost_of_a_convolution_is_checked_against_layers_that_are_counted():
    def right(inputs, outputs, kernel, side):
        parameters = inputs * outputs * kernel**2
        return parameters, parameters * side**2

    assert exercises.check_convolution_cost(right)
    for wrong in (
        None,
        lambda i, o, k, s: (i * o * k**2 + o, (i * o * k**2 + o) * s**2),  # with biases
        lambda i, o, k, s: (i * o * k, i * o * k * s),
        lambda i, o, k, s: (i * o * k**2, 2 * i * o * k**2 * s**2),  # operations, not multiply-adds
        fails,
    ):
        assert not exercises.check_convolution_cost(wrong)


def test_the_receptive_field_is_checked_against_gradients():
    def field(blocks, kernel=3, jump=1, first_stride=2):
        seen = kernel
        for stage, count in enumerate(blocks):
            for number in range(2 * count):
                seen += (kernel - 1) * jump
                if stage and not number:
                    jump *= first_stride
        return seen

    assert exercises.check_receptive_field(field)
    assert measured_receptive_field((2, 2, 2, 2)) == 109
    for wrong in (
        None,
        lambda blocks: 3 + 4 * sum(blocks),  # no strides
        lambda blocks: field(blocks) - 2,  # the stem forgotten
        lambda blocks: 32,
        fails,
    ):
        assert not exercises.check_receptive_field(wrong)


def test_activation_maps_are_checked_against_the_nets_own():
    def right(maps, weight):
        return torch.einsum("kf,nfhw->nkhw", weight, maps)

    assert exercises.check_activation_maps(right)
    assert exercises.check_activation_maps(lambda maps, weight: (weight @ maps.flatten(2)).unflatten(2, maps.shape[2:]))
    assert_rejected(
        exercises.check_activation_maps(lambda maps, weight: right(maps, weight).flip(3)), "not at the places"
    )
    for wrong in (
        None,
        lambda maps, weight: right(maps, weight).mean((2, 3)),  # the logits
        lambda maps, weight: right(maps, weight).relu(),
        lambda maps, weight: right(maps, weight).softmax(1),
        lambda maps, weight: right(maps.transpose(2, 3), weight),
        fails,
    ):
        assert not exercises.check_activation_maps(wrong)


def with_new_head(net, classes, *, in_place=False, learning=True, size=None, bias=True):
    other = net if in_place else copy.deepcopy(net)
    other.requires_grad_(requires_grad=not learning)
    other.head = torch.nn.Linear(other.head.in_features, size or classes, bias=bias)
    return other


def with_head_of_two(net, classes):
    given = with_new_head(net, classes)
    given.head = torch.nn.Sequential(torch.nn.Dropout(0.1), given.head)
    return given


def test_a_new_head_is_checked_by_what_must_stay():
    assert exercises.check_new_head(with_new_head)
    for wrong, word in (
        (lambda net, classes: with_new_head(net, classes, in_place=True), "has changed"),
        (lambda net, classes: with_new_head(net.requires_grad_(requires_grad=False), classes), "is frozen now"),
        (lambda net, classes: with_new_head(copy.copy(net), classes, in_place=True), "has changed"),
        (lambda net, classes: with_new_head(net, classes, learning=False), "only the head"),
        (lambda net, classes: with_new_head(net, classes, bias=False), "has no bias"),
        (
            lambda net, classes: with_new_head(net, classes, size=10),
            "for 7 classes of the shape (4, 7)",
        ),
        (lambda net, classes: lab.unfreeze(lab.ResNet((1, 1, 1, 1), width=2, classes=classes), 0), "features are not"),
        (lambda net, classes: None, "not None"),
        (lambda net, classes: torch.nn.Sequential(with_new_head(net, classes)), "a ResNet like the given one"),
        (with_head_of_two, "a new nn.Linear as its head"),
        (fails, "TypeError"),
    ):
        assert_rejected(exercises.check_new_head(wrong), word)
    assert not exercises.check_new_head(None)


def test_the_nearest_mean_is_checked_against_distances():
    def right(train, labels, others):
        means = torch.stack([train[labels == number].mean(dim=0) for number in labels.unique()])
        return torch.cdist(others, means).argmin(dim=1)

    def scored(score):
        """The class whose mean has the highest score."""
        return lambda train, labels, others: score(
            others, torch.stack([train[labels == number].mean(dim=0) for number in range(5)])
        ).argmax(dim=1)

    assert exercises.check_nearest_mean(right)
    for wrong, word in (
        (lambda train, labels, others: labels[torch.cdist(others, train).argmin(dim=1)], "nearest training feature"),
        (scored(lambda others, means: others @ means.T), "a dot product is no distance"),  # the longest mean wins
        (scored(lambda others, means: torch.cosine_similarity(others[:, None], means, dim=2)), "directions"),
        (scored(torch.cdist), "the farthest mean"),
        (scored(lambda others, means: -torch.cdist(others, means, p=1)), "have a nearer mean"),
    ):
        assert_rejected(exercises.check_nearest_mean(wrong), word)
    for wrong in (
        None,
        lambda train, labels, others: torch.cdist(others, train).argmin(dim=1),  # a row, not a class
        lambda train, labels, others: right(train, labels, others)[:-1],
        fails,
    ):
        assert not exercises.check_nearest_mean(wrong)


def test_labels_saved_are_read_off_the_line():
    accuracies = {("none", 10): 0.1, ("none", 40): 0.3, ("none", 100): 0.5, ("some", 10): 0.2, ("some", 40): 0.45}
    results = pd.DataFrame(
        [
            {"backbone": backbone, "per_class": count, "test_top1": mean + spread}
            for (backbone, count), mean in accuracies.items()
            for spread in (-0.01, 0.01)
        ]
    )
    assert exercises.check_labels_saved(20, results, few=10)  # half the way from 10 to 40, in factors
    for wrong, word in ((25, "23.2%"), (10, "10.0%"), (1000, "10 to 100"), ("many", "a number is expected")):
        assert_rejected(exercises.check_labels_saved(wrong, results, few=10), word)
    assert not exercises.check_labels_saved(None, results, few=10)


def distillation_gradient(student, teacher, temperature):
    return temperature * ((student / temperature).softmax(1) - (teacher / temperature).softmax(1)) / len(student)


def test_the_gradient_of_distillation_is_checked_against_autograd():
    assert exercises.check_distillation_gradient(distillation_gradient)
    for wrong, word in (
        (lambda s, t, by: -distillation_gradient(s, t, by), "the sign is wrong"),
        (lambda s, t, by: len(s) * distillation_gradient(s, t, by), "divide by the number of images"),
        (lambda s, t, by: distillation_gradient(s, t, by) / by, "T = 3: one factor T is missing"),
        (lambda s, t, by: distillation_gradient(s, t, by) / by**2, "T = 3: you forget T^2"),
        (lambda s, t, by: distillation_gradient(s, t, by) * by, "one T cancels"),
        (lambda s, t, by: by * distillation_gradient(s, t, 1), "T = 3: at this temperature"),
        (lambda s, t, by: distillation_gradient(s, t, by) / s.shape[1], "not over the classes"),
        (lambda s, t, by: by * ((s / by).softmax(0) - (t / by).softmax(0)) / len(s), "(dim=0)"),
        (lambda s, t, by: None, "not None"),
        (fails, "TypeError"),
    ):
        assert_rejected(exercises.check_distillation_gradient(wrong), word)
    assert not exercises.check_distillation_gradient(None)


def test_a_temperature_is_checked_by_the_entropy_it_gives():
    def right(logits, wanted):
        low, high = 1e-3, 1e3
        for _ in range(60):
            middle = math.sqrt(low * high)
            low, high = (middle, high) if mean_entropy(logits, middle) < wanted else (low, middle)
        return low

    assert exercises.check_temperature(right)
    for wrong in (None, lambda logits, wanted: 1.0, lambda logits, wanted: 1 / right(logits, wanted),
                  lambda logits, wanted: -1, lambda logits, wanted: "hot", fails):  # fmt: skip
        assert not exercises.check_temperature(wrong)


def in_parts_of(logits, labels, bins, ends):
    """The error in bins that do not span 0 to 1."""
    confidence, found = (part.numpy() for part in logits.softmax(1).max(1))
    edges = np.linspace(*(float(end) for end in ends(confidence)), bins + 1)
    number = np.clip(np.digitize(confidence, edges) - 1, 0, bins - 1)
    gaps = [(confidence - (found == labels.numpy()))[number == one].sum() for one in range(bins)]
    return np.abs(gaps).sum() / len(labels)


def test_the_calibration_error_is_checked_bin_by_bin():
    def right(logits, labels, bins, *, weighted=True, distance=abs, together=sum):
        confidence, found = logits.softmax(1).max(1)
        right = (found == labels).float()
        gaps = []
        for number in range(bins):
            inside = (confidence * bins).long().clamp_max(bins - 1) == number
            if inside.any():
                share = inside.float().mean() if weighted else 1 / bins
                gaps.append(share * distance(confidence[inside].mean() - right[inside].mean()))
        return together(gaps).item()

    def with_options(**options):
        return lambda logits, labels, bins: right(logits, labels, bins, **options)

    assert exercises.check_calibration_error(right)
    for wrong, word in (
        (with_options(weighted=False), "all bins count alike, empty ones too"),
        (with_options(distance=lambda gap: gap), "take each bin's absolute difference"),
        (lambda logits, labels, bins: bins * right(logits, labels, bins, weighted=False, together=max), "the largest"),
        (with_options(distance=lambda gap: 100 * abs(gap)), "in per cent"),
        (with_options(distance=torch.square), "with 1 bins the error is"),
        (
            lambda *given: in_parts_of(*given, lambda confidence: (confidence.min(), confidence.max())),
            "those that occur",
        ),
        (
            lambda logits, *given: in_parts_of(logits, *given, lambda _: (1 / logits.shape[1], 1)),
            "those that are possible",
        ),
    ):
        assert_rejected(exercises.check_calibration_error(wrong), word)
    for wrong in (
        None,
        lambda logits, labels, bins: right(logits, labels, 15),
        lambda logits, labels, bins: (logits.argmax(1) != labels).float().mean().item(),
        fails,
    ):
        assert not exercises.check_calibration_error(wrong)


def test_what_an_answer_does_to_its_arguments_does_not_matter():
    def changing(train, labels, others):
        means = torch.stack([train[labels == number].mean(dim=0) for number in range(5)])
        found = torch.cdist(others, means).argmin(dim=1)
        others.zero_()
        train.zero_()
        return found

    assert exercises.check_nearest_mean(changing)
