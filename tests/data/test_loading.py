import functools
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import labutils as lab
from labutils.data import archives
from labutils.data.loading import batches, channel_statistics, data_root, stratified_order


@functools.cache
def builtin(name):
    return lab.load_data(name, source="builtin", device="cpu")


@pytest.mark.parametrize(
    ("name", "shape", "classes"),
    [("mnist", (1, 28, 28), 10), ("cifar10", (3, 32, 32), 10), ("cifar100", (3, 32, 32), 100)],
)
def test_stand_ins_have_the_layout_of_the_real_sets(name, shape, classes):
    data = builtin(name)
    for split in (data.train, data.validation, data.test):
        assert split.images.dtype == torch.uint8
        assert split.labels.dtype == torch.int64
        assert split.images.shape == (len(split), *shape)
        assert split.labels.unique().tolist() == list(range(classes))
    assert len(data.classes) == classes
    assert data.source == "builtin"
    assert "standing in" in data.title


def test_the_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    data = lab.load_data("mnist", source="builtin", validation=0, device="cpu")
    labels = torch.cat([data.train.labels, data.test.labels])
    assert torch.equal(labels.bincount(), torch.from_numpy(load_digits().target).bincount())
    inked = torch.cat([data.train.images, data.test.images]).double().mean((0, 1))[4:24, 4:24]
    small = torch.nn.functional.avg_pool2d(inked[None, None], 5)[0, 0]
    expected = torch.from_numpy(load_digits().images).mean(0) * 255 / 16
    halves = torch.nn.functional.adaptive_avg_pool2d(expected[None, None], 4)[0, 0]
    assert torch.allclose(small, halves, atol=12)


def test_stand_ins_are_the_same_each_time():
    first, second = builtin("cifar10"), lab.load_data("cifar10", source="builtin", device="cpu")
    assert torch.equal(first.train.images, second.train.images)


def test_the_split_depends_on_its_own_seed_alone():
    first = lab.load_data("mnist", source="builtin", seed=0)
    torch.manual_seed(99)
    again = lab.load_data("mnist", source="builtin", seed=0)
    other = lab.load_data("mnist", source="builtin", seed=1)
    assert torch.equal(first.validation.images, again.validation.images)
    assert not torch.equal(first.validation.images, other.validation.images)


def test_validation_images_are_not_trained_on(digits):
    both = torch.cat([digits.train.images, digits.validation.images]).flatten(1)
    whole = lab.load_data("mnist", source="builtin", validation=0)
    assert whole.validation is None
    assert sorted(map(bytes, both.numpy())) == sorted(map(bytes, whole.train.images.flatten(1).numpy()))


@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**16),
)
def test_every_beginning_of_the_order_is_stratified(counts, share, seed):
    labels = np.repeat(np.arange(len(counts)), counts)
    order = stratified_order(labels, seed)
    assert sorted(order) == list(range(len(labels)))
    chosen = round(share * len(labels))
    found = np.bincount(labels[order[:chosen]], minlength=len(counts))
    shares = np.array(counts) / len(labels)
    assert np.all(np.abs(found - shares * chosen) <= (1 + shares * len(counts)) / 2 + 1e-9)


def test_limit_caps_every_split_and_is_nested():
    small = lab.load_data("mnist", source="builtin", limit=100)
    assert len(small.train) + len(small.validation) == 100
    assert len(small.test) == 100
    smaller = lab.load_data("mnist", source="builtin", limit=50, validation=0)
    larger = {bytes(image.numpy()) for image in torch.cat([small.train.images, small.validation.images])}
    assert all(bytes(image.numpy()) in larger for image in smaller.train.images)


def test_per_class_keeps_so_many_training_images_of_each_and_the_other_splits(digits):
    few = lab.load_data("mnist", source="builtin", per_class=7, device="cpu")
    assert few.train.labels.bincount().tolist() == [7] * 10
    assert torch.equal(few.validation.images, digits.validation.images)
    assert torch.equal(few.test.images, digits.test.images)
    smallest = digits.train.labels.bincount().min().item()
    with pytest.raises(lab.SettingError, match=f"per_class: 1000 was given; allowed: at most {smallest}"):
        lab.load_data("mnist", source="builtin", per_class=1000)


@pytest.mark.parametrize("share", [0.0001, 0.9999999])
def test_a_share_that_leaves_a_split_without_images_is_refused(share):
    with pytest.raises(lab.SettingError, match=r"validation: .*a share of the 1438 images that holds at least one"):
        lab.load_data("mnist", source="builtin", validation=share)


def test_a_digest_is_of_images_labels_splits_and_classes_and_of_nothing_else(digits):
    images, labels = digits.train.images, digits.train.labels
    pixel = images.clone()
    pixel[5, 0, 3, 3] += 1
    others = [
        replace(digits, train=lab.Split(images, labels.roll(1))),
        replace(digits, train=lab.Split(pixel, labels)),
        replace(digits, validation=None),
        replace(digits, validation=digits.test, test=digits.validation),
        replace(digits, classes=digits.classes[::-1]),
        lab.load_data("mnist", source="builtin", seed=7, device="cpu"),
    ]
    assert len({digits.digest, *(other.digest for other in others)}) == 7
    renamed = replace(digits, title="another name", source="archive", train=lab.Split(images.clone(), labels.clone()))
    assert renamed.digest == digits.digest


def test_a_digest_is_of_what_the_data_are_now():
    data = lab.load_data("mnist", source="builtin", limit=100, device="cpu")
    before = data.digest
    assert data.digest == before
    data.train.labels[0] = (data.train.labels[0] + 1) % 10
    after = data.digest
    data.test.images[0] = 0
    assert len({before, after, data.digest}) == 3


def test_a_split_of_other_images_is_named(digits):
    other = lab.load_data("cifar10", source="builtin", limit=50, device="cpu")
    with pytest.raises(lab.SettingError, match=r"split: .*3 x 32 x 32.* of images of \(1, 28, 28\)"):
        digits.split(other.test)


@pytest.mark.parametrize(("options", "words"), [({"batch_size": 0}, "batch_size: 0"), ({"augment": "x"}, "augment")])
def test_wrong_batches_are_named(digits, options, words):
    with pytest.raises(lab.SettingError, match=words):
        next(batches(digits.train, digits, **{"batch_size": 5} | options))


def test_batches_cover_the_split_once_and_are_normalised(digits):
    generator = torch.Generator().manual_seed(0)
    images, labels = map(torch.cat, zip(*batches(digits.train, digits, 100, generator=generator), strict=True))
    assert images.dtype == torch.float32
    assert torch.equal(labels.bincount(), digits.train.labels.bincount())
    assert not torch.equal(labels, digits.train.labels)
    assert images.mean().abs() < 1e-4
    assert (images.std() - 1).abs() < 1e-3
    again = torch.cat([labels for _, labels in batches(digits.train, digits, 100)])
    assert torch.equal(again, digits.train.labels)


@given(size=st.integers(1, 400))
def test_batches_are_full_but_for_the_last(digits, size):
    sizes = [len(labels) for _, labels in batches(digits.test, digits, size)]
    assert sum(sizes) == len(digits.test)
    assert set(sizes[:-1]) <= {size}


def test_a_colour_channel_is_normalised_by_its_own_statistics():
    pixels = torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8) // torch.tensor([1, 2, 4])[:, None, None]
    mean, std = channel_statistics(pixels.to(torch.uint8))
    data = replace(builtin("mnist"), mean=mean, std=std)
    images = data.normalise(pixels)
    assert torch.allclose(mean.double(), pixels.double().mean((0, 2, 3)), atol=1e-4)
    assert torch.allclose(std.double(), pixels.double().std((0, 2, 3), correction=0), atol=1e-4)
    assert torch.allclose(images, (pixels - mean.view(-1, 1, 1)) / std.view(-1, 1, 1), atol=1e-5)
    assert images.mean(dim=(0, 2, 3)).abs().max() < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8])
def test_what_is_normalised_stays_as_it_is(digits, dtype):
    images = digits.train.images[:4].to(dtype)
    before = images.clone()
    assert not torch.equal(digits.normalise(images), before.float())
    assert torch.equal(images, before)


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (torch.zeros(2, 28, 28, dtype=torch.uint8), torch.zeros(2).long(), ["images", "(2, 28, 28)", "(N, C, H, W)"]),
        (torch.zeros(2, 1, 4, 4), torch.zeros(2).long(), ["images", "float32", "uint8", "0 to 255"]),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(3).long(), ["labels", "(3,)", "2 images"]),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2), ["labels", "float32", "int64"]),
    ],
)
def test_wrong_images_and_labels_are_named(images, labels, words):
    with pytest.raises(lab.SettingError) as caught:
        lab.Split(images, labels)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize("wrong", [-1, 10])
def test_labels_out_of_range_are_named(digits, wrong):
    labels = digits.train.labels.clone()
    labels[3] = wrong
    with pytest.raises(lab.SettingError, match=r"labels: .*0 to 9, of 10 classes"):
        replace(digits, train=lab.Split(digits.train.images, labels))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "minst"}, ["name", "minst", "mnist"]),
        ({"source": "web"}, ["source", "web", "builtin"]),
        ({"validation": 1.0}, ["validation", "1.0", "below 1"]),
        ({"validation": -0.1}, ["validation", "-0.1", "from 0"]),
        ({"seed": -1}, ["seed", "-1", "from 0"]),
        ({"limit": 3}, ["limit", "3", "from 10"]),
        ({"limit": 1.5}, ["limit", "1.5", "whole number"]),
        ({"device": "abacus"}, ["device", "abacus", "cpu"]),
    ],
)
def test_wrong_arguments_are_named(arguments, words):
    with pytest.raises(ValueError, match=words[0]) as caught:
        lab.load_data(**{"name": "mnist", "source": "builtin"} | arguments)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_absent_is_named():
    with pytest.raises(lab.SettingError, match="device: 'cuda'"):
        lab.load_data("mnist", source="builtin", device="cuda")


def test_unreachable_data_are_stood_in_for_loudly(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "addresses", lambda name: ["http://localhost:9/"])
    with pytest.warns(lab.StandInWarning, match="MNIST COULD NOT BE REACHED") as caught:
        data = lab.load_data("mnist", root=tmp_path)
    assert data.source == "builtin"
    assert str(tmp_path) in str(caught[0].message)
    assert not list(tmp_path.glob("*.npz"))
    assert not list(tmp_path.glob("*.partial"))


def test_the_data_root_is_argument_then_environment_then_checkout(tmp_path, monkeypatch):
    monkeypatch.setenv("LABUTILS_DATA", "/somewhere")
    assert data_root(tmp_path) == tmp_path
    assert str(data_root()) == "/somewhere"
    monkeypatch.delenv("LABUTILS_DATA")
    assert (data_root().parent / "pyproject.toml").is_file()


MEMORY = """
import resource

import torch
import labutils as lab

images = torch.randint(0, 256, (8_000, 3, 32, 32), dtype=torch.uint8)
split = lab.Split(images, torch.randint(0, 10, (8_000,)))
small = lab.load_data("mnist", source="builtin", device="cpu")
for augment in ("basic", "strong"):
    next(lab.batches(split, small, 128, generator=torch.Generator(), augment=augment))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for augment in ("basic", "strong"):
    for _ in lab.batches(split, small, 128, generator=torch.Generator(), augment=augment):
        pass
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the figure has another unit")
def test_a_pass_takes_little_memory_beside_the_images():
    printed = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True).stdout
    assert max(map(float, printed.split())) < 30  # MiB; the images alone are 23 as uint8, and would be 94 as float32
