"""The heads found for features, unfreezing, and what a transfer takes over."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import labutils as lab
from labutils.methods import linear, transfer
from labutils.methods.neighbours import NeighbourHead
from labutils.models import CNN, build_model
from labutils.training.optimizers import make_optimizer


@pytest.fixture
def net() -> lab.ResNet:
    torch.manual_seed(0)
    return lab.ResNet([1, 1, 1, 1], width=4, zero_init_residual=False).eval()


def blobs(count, classes, width=12, seed=0):
    """Features around a centre for each class, and their labels."""
    random = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(9))
    labels = torch.arange(count) % classes
    return 3 + 2 * centres[labels] + 1.5 * torch.randn(count, width, generator=random), labels


# Heads


@settings(max_examples=15, deadline=None)
@given(
    k=st.integers(1, 20),
    metric=st.sampled_from(transfer.METRICS),
    weighted=st.booleans(),
    seed=st.integers(0, 99),
)
def test_knn_agrees_with_scikit_learn(k, metric, weighted, seed):
    from sklearn.neighbors import KNeighborsClassifier

    train, test = blobs(120, 4, seed=seed), blobs(60, 4, seed=seed + 100)
    weights = (lambda distance: 1 / np.maximum(distance, 1e-6)) if weighted else "uniform"
    theirs = KNeighborsClassifier(k, weights=weights, metric=metric, algorithm="brute").fit(*map(np.asarray, train))
    votes = torch.as_tensor(theirs.predict_proba(test[0].numpy()))
    mine = NeighbourHead(train, k=k, metric=metric, weighted=weighted)(test[0]).double().clamp_min(0)
    assert torch.allclose(mine / mine.sum(dim=1, keepdim=True), votes, atol=1e-3)


@pytest.mark.parametrize("penalty", [0.001, 0.1, 1.0])
def test_the_svm_is_that_of_scikit_learns_linear_svc(penalty):
    from sklearn.svm import LinearSVC

    (features, labels), (others, _) = blobs(300, 5), blobs(100, 5, seed=1)
    mean, std = features.mean(dim=0), features.std(dim=0)
    theirs = LinearSVC(C=penalty, tol=1e-8, max_iter=100_000, dual=True, random_state=0)
    theirs.fit(((features - mean) / std).numpy(), labels.numpy())
    expected = torch.as_tensor(theirs.decision_function(((others - mean) / std).numpy())).float()
    found = linear.svm_head((features, labels), C=penalty)(others)
    assert torch.allclose(found, expected, atol=2e-3 * expected.abs().max())


@pytest.mark.parametrize("penalty", [0.001, 0.1, 1.0])
def test_the_probe_is_scikit_learns_logistic_regression(penalty):
    from sklearn.linear_model import LogisticRegression

    (features, labels), (others, _) = blobs(300, 5), blobs(100, 5, seed=1)

    def with_bias(rows):
        rows = (rows - features.mean(dim=0)) / features.std(dim=0)
        return torch.cat([rows, torch.ones(len(rows), 1)], dim=1).numpy()

    theirs = LogisticRegression(C=penalty, fit_intercept=False, tol=1e-8, max_iter=10_000)
    theirs.fit(with_bias(features), labels.numpy())
    expected = torch.as_tensor(theirs.predict_proba(with_bias(others))).float()
    assert torch.allclose(linear.probe_head((features, labels), C=penalty)(others).softmax(1), expected, atol=2e-3)


def test_all_methods_score_what_can_be_told_apart():
    train, test = blobs(400, 8), blobs(200, 8, seed=1)
    for method in (lab.knn, lab.linear_svm, lab.linear_probe):
        found = method(train, test)
        assert 0.6 < found["top1"] < found["top5"] <= 1
        guessed = method(train, (test[0], test[1].roll(1)))
        assert guessed["top1"] < 0.2


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_penalty_is_the_one_that_validation_prefers_and_no_edge_of_what_was_tried(scale, monkeypatch):
    """Losses that count `scale` times as much want a C smaller by that: beyond the values tried first, if need be."""
    tried = {}

    def fit_head(train, *, C):  # noqa: N803
        tried[C] = abs(math.log10(C * scale) + 0.7)  # the best lies between two powers of ten
        return C

    monkeypatch.setattr(linear, "score", lambda head, validation: {"top1": -round(tried[head], 6)})
    best = linear.best_c(fit_head, None, blobs(4, 2))
    assert math.isclose(best, 0.1 / scale)
    assert min(tried) < best < max(tried)


def test_penalties_that_do_equally_well_are_not_tried_without_end():
    train = blobs(100, 4)
    tried = []

    def fit_head(train, *, C):  # noqa: N803
        tried.append(C)
        return linear.svm_head(train, C=1.0)

    assert linear.best_c(fit_head, train, train) == min(linear.FIRST_C)
    assert tried == list(linear.FIRST_C)


@pytest.mark.parametrize("fit_head", [linear.svm_head, linear.probe_head])
@pytest.mark.parametrize("constant", [3.3, 12345.678])
def test_a_constant_feature_and_a_small_scale_change_no_answer(fit_head, constant):
    (features, labels), (others, _) = blobs(300, 4), blobs(300, 4, seed=1)

    def beside(table):
        return torch.cat([1e-7 * table, torch.full((len(table), 1), constant)], dim=1)

    head = fit_head((beside(features), labels))
    with torch.no_grad():
        assert torch.allclose(head(beside(others)), fit_head((features, labels))(others), atol=1e-2)
    assert head.weight[:, -1].abs().max() < 1e-6
    with pytest.raises(lab.SettingError, match="two rows or more"):
        fit_head((features[:1], labels[:1]))


def test_euclidean_neighbours_far_from_zero_are_those_of_scikit_learn():
    from sklearn.neighbors import KNeighborsClassifier

    generator = torch.Generator().manual_seed(0)
    features, queries = (torch.randn(count, 64, generator=generator) + 1000 for count in (400, 200))
    labels = torch.arange(400) % 100
    head = NeighbourHead((features, labels), k=1, metric="euclidean")
    expected = KNeighborsClassifier(1, algorithm="brute").fit(features.double(), labels).predict(queries.double())
    assert (head(queries).argmax(1).numpy() == expected).mean() > 0.97


@pytest.mark.parametrize("method", [lab.knn, lab.linear_svm, lab.linear_probe])
def test_wrong_features_are_named(method):
    features, labels = blobs(40, 4)
    broken = features.clone()
    broken[7, 2] = math.nan
    with pytest.raises(lab.SettingError, match="features: 'not finite in row 7'"):
        method((broken, labels), (features, labels))
    with pytest.raises(lab.SettingError, match="features: 'not finite in row 7'"):
        method((features, labels), (broken, labels))
    with pytest.raises(lab.SettingError, match=r"features: \(40, 12\).*\(39, F\)"):
        method((features, labels[:-1]), (features, labels))
    without = labels != 3
    with pytest.raises(lab.SettingError, match="none of class 3"):
        method((features[without], labels[without]), (features, labels))


@pytest.mark.parametrize("method", [lab.linear_svm, lab.linear_probe])
def test_an_empty_class_between_others_is_named(method):
    features, labels = blobs(40, 4)
    kept = labels != 1
    with pytest.raises(lab.SettingError, match="none of class 1"):
        method((features[kept], labels[kept]), (features, labels))
    with pytest.raises(lab.SettingError, match="C: 0 was given"):
        method((features, labels), (features, labels), C=0)


def test_more_neighbours_than_features_are_named():
    features = blobs(40, 4)
    with pytest.raises(lab.SettingError, match=r"k: 41 .* from 1 to 40"):
        lab.knn(features, features, k=41)
    with pytest.raises(lab.SettingError, match="metric: 'taxi'"):
        lab.knn(features, features, metric="taxi")


@pytest.mark.parametrize("method", [lab.knn, lab.linear_svm, lab.linear_probe])
def test_features_and_labels_of_another_kind_are_named(method):
    features, labels = blobs(40, 4)
    for wrong, words in (
        ((features[:, :7], labels), r"features: \(40, 7\) .* \(N, 12\), as the training features have"),
        ((features.int(), labels), "features: torch.int32 .* torch.float32"),
        ((features.double(), labels), "features: torch.float64 .* torch.float32"),
        ((features, labels.float()), "labels: .*float32.* torch.int64, from 0"),
        ((features, labels - 1), "labels: .*from -1.* torch.int64, from 0"),
        ((features[:0], labels[:0]), r"features: \(0, 12\)"),
    ):
        with pytest.raises(lab.SettingError, match=words):
            method((features, labels), wrong)
        if wrong[0].shape[1] == 12:
            with pytest.raises(lab.SettingError, match=words):
                method(wrong, (features, labels))


@pytest.mark.parametrize("metric", transfer.METRICS)
@pytest.mark.parametrize("weighted", [True, False])
def test_classes_without_votes_follow_in_the_order_of_their_nearest_example(metric, weighted):
    """On an arc, so that both metrics agree; each class has an example further away, too."""
    angles, far = torch.tensor([0.5, 0.1, 0.9, 0.3, 1.1, 0.7]), torch.full((6,), 2.5)
    turns = torch.cat([angles, far + torch.arange(6) / 100])
    train = torch.stack([turns.cos(), turns.sin()], dim=1), torch.arange(6).repeat(2)
    queries = torch.tensor([0.0, 3.0])
    scores = NeighbourHead(train, k=2, metric=metric, weighted=weighted)(
        torch.stack([queries.cos(), queries.sin()], dim=1)
    )
    near = scores[0].argsort(descending=True).tolist()
    assert set(near[:2]) == {1, 3}  # which vote
    assert near[2:] == [0, 5, 2, 4]
    assert scores[1].argsort(descending=True).tolist()[2:] == [3, 2, 1, 0]
    found = lab.knn(train, (train[0][:1], torch.tensor([0])), k=1, metric=metric, weighted=weighted)
    assert found == {"top1": 1, "top5": 1}
    last = torch.stack([torch.tensor([0.0]).cos(), torch.tensor([0.0]).sin()], dim=1), torch.tensor([4])
    assert lab.knn(train, last, k=1, metric=metric, weighted=weighted) == {"top1": 0, "top5": 0}


# Unfreezing


@settings(max_examples=20, deadline=None)
@given(stages=st.integers(-1, 4), again=st.integers(-1, 4))
def test_only_the_last_stages_learn(stages, again):
    net = lab.unfreeze(lab.unfreeze(lab.ResNet([1, 1, 1, 1], width=2), again), stages)
    learning = {name.rpartition(".")[0] for name, weight in net.named_parameters() if weight.requires_grad}
    prefixes = ["head", *(f"stages.{number}" for number in range(4 - max(stages, 0), 4))]
    expected = {
        name
        for name, module in net.named_modules()
        if list(module.parameters(recurse=False)) and (stages == -1 or name.startswith(tuple(prefixes)))
    }
    assert learning == expected


@pytest.mark.parametrize("kind", ["resnet", "shallow"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_frozen_layers_keep_weights_and_statistics(shapes, kind, optimizer):
    torch.manual_seed(0)
    resnet = {"blocks": [1, 1, 1, 1], "width": 4, "zero_init_residual": False}
    sizes = resnet if kind == "resnet" else {"widths": [4, 4, 4]}
    net = lab.unfreeze(build_model(kind, image_shape=shapes.image_shape, classes=10, **sizes), 1)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    lab.fit(net, shapes, lab.Training(epochs=1, optimizer=optimizer, lr=0.01, augment="basic"), progress=False)
    changed = {name for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])}
    last = f"stages.{len(net.stages) - 1}." if kind == "resnet" else f"blocks.{len(net.stages) - 1}."
    assert changed == {name for name in before if name.startswith(("head.", last))}


def test_a_net_that_is_unfrozen_again_updates_its_statistics():
    net = lab.unfreeze(lab.unfreeze(lab.ResNet([1, 1, 1, 1], width=2), 1).train(), -1)
    assert all(module.training for module in net.modules())


def test_unfreezing_what_is_not_there_is_named(net):
    with pytest.raises(lab.SettingError, match=r"stages: 5 .* from -1 to 4"):
        lab.unfreeze(net, 5)
    with pytest.raises(lab.SettingError, match=r"stages: -2"):
        lab.unfreeze(net, -2)
    with pytest.raises(lab.SettingError, match="which have stages"):
        lab.unfreeze(lab.MLP(2, 8), 1)


def test_a_new_head_leaves_the_old_net_alone(net):
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    other = transfer.transferred(net, 100)
    assert other.head.out_features == 100
    lab.unfreeze(other, -1)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_each_stage_learns_at_its_own_rate(net):
    optimizer = make_optimizer(net, lab.Training(epochs=1, optimizer="sgd", lr=0.8, stage_lr=0.5))
    rates = {parameter: group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    parts = [net.head, *reversed(net.stages), net.stem]
    assert [{rates[parameter] for parameter in part.parameters()} for part in parts] == [
        {0.8}, {0.4}, {0.2}, {0.1}, {0.05}, {0.025},
    ]  # fmt: skip
    assert set(rates) == set(net.parameters())


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_the_head_learns_at_a_rate_of_its_own(net, optimizer):
    whole, apart = (
        make_optimizer(net, lab.Training(epochs=1, optimizer=optimizer, lr=0.4, head_lr=factor)) for factor in (1, 3)
    )
    plain, changed = (
        {parameter: group["lr"] for group in one.param_groups for parameter in group["params"]}
        for one in (whole, apart)
    )
    head = set(net.head.parameters())
    assert set(changed) == set(plain) == set(net.parameters())
    assert all(changed[one] == pytest.approx(plain[one] * (3 if one in head else 1)) for one in plain)
    lab.unfreeze(net, 0)
    (group,) = make_optimizer(net, lab.Training(epochs=1, optimizer=optimizer, lr=0.4, head_lr=3)).param_groups
    assert set(group["params"]) == head


def test_rates_by_stage_are_refused_where_there_are_none(digits):
    with pytest.raises(lab.SettingError, match=r"stage_lr: 0\.5 .* no stages"):
        lab.fit(lab.MLP(1, 8), digits, lab.Training(epochs=1, stage_lr=0.5), progress=False)
    with pytest.raises(lab.SettingError, match=r"stage_lr: 0\.5 .* with muon"):
        lab.Training(epochs=1, stage_lr=0.5, optimizer="muon")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"method": "magic"}, "method: 'magic'"),
        ({"backbone": None, "method": "knn"}, "backbone: None .* for knn"),
        ({"backbone": None, "stages": 1}, "backbone: None"),
        ({"stages": -2}, "stages: -2"),
        ({"k": 0}, "k: 0"),
        ({"C": -1.0}, "C: -1"),
    ],
)
def test_wrong_settings_of_a_transfer_are_named(settings, words):
    with pytest.raises(lab.SettingError, match=words):
        transfer.Transfer(**{"backbone": "cnn_backbone", **settings})


def test_all_stages_belong_to_cnns():
    for net in (lab.ResNet([1, 1, 1, 1], width=2), lab.ShallowCNN([2, 2, 2])):
        assert isinstance(net, CNN)
        assert net.stages is not None
