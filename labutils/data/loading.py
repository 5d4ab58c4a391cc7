"""Image data sets as tensors on the device: load_data, and batches of normalised images.

Images stay uint8 in memory; a batch is gathered, augmented and normalised as one tensor. A pass over 60,000 MNIST
images in batches of 128 takes 17 ms on two cores (AMD EPYC, torch 2.15, n = 15); `make bench` measures it.
"""

import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from labutils.data import archives, standins
from labutils.data.augmentation import AUGMENTATIONS, augmented
from labutils.data.device import find_device, fits, has_channels_last, moved
from labutils.errors import SettingError, check_choice, check_number, check_whole
from labutils.files import home, tensors_digest

NAMES = tuple(archives.CLASSES)
SOURCES = ("auto", "builtin", "download", "archive")
# Pixels prepared at once: small batches share the cost of each tensor operation, and of waking its threads. A larger
# chunk costs more than it saves: its memory goes back to the system and has to be asked for again each time.
CHUNK = 1 << 20
SMALLEST_SPLIT = 2  # training images; one alone has no statistics


class StandInWarning(UserWarning):
    """The data set could not be reached, and the built-in stand-in takes its place."""


@dataclass(frozen=True)
class Split:
    """A part of a data set.

    Attributes:
        images: (N, C, H, W) uint8.
        labels: (N,) int64.

    Raises:
        SettingError: images or labels of another shape or type.
    """

    images: torch.Tensor
    labels: torch.Tensor

    def __post_init__(self):
        if self.images.ndim != 4:
            raise SettingError("images", tuple(self.images.shape), "the shape (N, C, H, W)")
        if self.images.dtype != torch.uint8:
            raise SettingError("images", self.images.dtype, "torch.uint8, from 0 to 255")
        if self.labels.shape != self.images.shape[:1] or self.labels.dtype != torch.int64:
            given = f"{tuple(self.labels.shape)} {self.labels.dtype}"
            raise SettingError("labels", given, f"one torch.int64 for each of {len(self.images)} images")

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"Split({len(self):,} images, {' x '.join(map(str, self.images.shape[1:]))})"


@dataclass(frozen=True)
class ImageData:
    """A data set, split, on one device; images that do not fit there stay in the processor's memory.

    Attributes:
        name: mnist, cifar10 or cifar100.
        train, validation, test: its parts; validation is None when its share is 0.
        classes: the names of the classes, in the order of their labels.
        mean, std: (C,), of the training part's pixels on the scale from 0 to 255.
        source: where it came from: archive, download or builtin.
        title: what it is, as captions and records name it.

    Raises:
        SettingError: a label that no class has.
    """

    name: str
    train: Split
    validation: Split | None
    test: Split
    classes: tuple[str, ...]
    mean: torch.Tensor
    std: torch.Tensor
    source: str
    title: str

    def __post_init__(self):
        for part in (self.train, self.validation, self.test):
            if part is not None and len(part) and not 0 <= part.labels.min() <= part.labels.max() < len(self.classes):
                given = f"{part.labels.min().item()} to {part.labels.max().item()}"
                raise SettingError("labels", given, f"0 to {len(self.classes) - 1}, of {len(self.classes)} classes")

    @property
    def digest(self) -> str:
        """SHA-256 of all images and labels, part by part: what the data are now, whatever they are called."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        tensors = {}
        for name, part in parts.items():
            if part is not None:
                tensors |= {f"{name}/images": part.images, f"{name}/labels": part.labels}
        changes = [tensor._version for tensor in tensors.values()]  # counts what is changed in place
        if vars(self).get("digested", (None, ""))[0] != changes:
            vars(self)["digested"] = changes, tensors_digest(tensors, record="\n".join(self.classes))
        return vars(self)["digested"][1]

    @property
    def device(self) -> torch.device:
        """Where its batches are, and its labels."""
        return self.mean.device

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return tuple(self.train.images.shape[1:])

    def split(self, part: "Split | str") -> Split:
        """One of this data set's parts by its name; a Split is passed through."""
        if isinstance(part, Split):
            if part.images.shape[1:] != self.train.images.shape[1:]:
                raise SettingError("split", part, f"one of images of {tuple(self.image_shape)}, as {self.title} has")
            return part
        check_choice("split", part, ("train", "validation", "test"))
        if getattr(self, part) is None:
            raise SettingError("split", part, "train or test, for data loaded with validation=0")
        return getattr(self, part)

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """A copy of images (N, C, H, W) on the device, float32 with mean 0 and standard deviation 1 in each channel."""
        layout = torch.preserve_format if has_channels_last(self.device) else torch.contiguous_format
        pixels = moved(images, self.device).to(torch.float32, copy=True, memory_format=layout)
        return pixels.sub_(self.mean.view(-1, 1, 1)).mul_(1 / self.std.view(-1, 1, 1))

    def __repr__(self) -> str:
        validation = f"{len(self.validation):,}" if self.validation else "no"
        return (
            f"{self.title} ({self.source}): {len(self.train):,} training, {validation} validation, "
            f"{len(self.test):,} test images of {' x '.join(map(str, self.image_shape))}, "
            f"{len(self.classes)} classes, on {self.device}"
        )


def data_root(root: str | Path | None = None) -> Path:
    """The data folder: `root`, else $LABUTILS_DATA, else data/ at home."""
    return Path(root or os.environ.get("LABUTILS_DATA") or home() / "data")


def load_data(
    name: str,
    *,
    source: str = "auto",
    root: str | Path | None = None,
    validation: float = 0.2,
    seed: int = 0,
    limit: int | None = None,
    per_class: int | None = None,
    device: str = "auto",
) -> ImageData:
    """Load a data set, split and ready on the device.

    Args:
        name: mnist, cifar10 or cifar100.
        source: archive takes `<root>/<name>.npz`; download fetches it and keeps it there; builtin makes a small
            stand-in without network or files; auto takes the first of archive, download and builtin that can be
            had, with a loud warning for the last.
        root: the data folder; without it $LABUTILS_DATA, else data/.
        validation: share of the training images set apart for validation, from 0 to below 1.
        seed: of the choice of validation images; apart from the seed of training.
        limit: keep at most so many images for training and validation together, and as many for the test; every
            limit keeps the classes' shares.
        per_class: keep so many training images of each class; validation and test stay as they are.
        device: auto, cpu, cuda or mps.

    Returns:
        The data set. Splits are stratified: each class has the same share in each, to within one image.

    Raises:
        SettingError: an argument that is not allowed.
        ArchiveError: source is archive, and it is missing or damaged.
        DownloadError: source is download, and no mirror gave the files.
    """
    check_data_settings(name, source, validation, seed, limit, per_class)
    target = find_device(device)

    arrays, source = load_arrays(name, source, data_root(root))
    if source == "builtin":
        title, classes = standins.TITLES[name], standins.CLASSES[name]
    else:
        title, classes = archives.title_of(arrays, name), archives.CLASSES[name]

    order = stratified_order(arrays["y_train"], seed)[:limit]
    held_out = round(validation * len(order))
    if len(order) - held_out < SMALLEST_SPLIT or (validation * len(order) > 0 and held_out == 0):
        raise SettingError(
            "validation",
            validation,
            f"0, or a share of the {len(order)} images that holds at least one and leaves at least {SMALLEST_SPLIT}",
        )
    test = stratified_order(arrays["y_test"], seed)[:limit] if limit else np.arange(len(arrays["y_test"]))

    place = target if fits(arrays["x_train"].nbytes + arrays["x_test"].nbytes, target) else torch.device("cpu")

    def split(part: str, chosen: np.ndarray) -> Split:
        images = torch.from_numpy(arrays[f"x_{part}"][chosen])
        images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)
        labels = torch.from_numpy(arrays[f"y_{part}"][chosen].astype(np.int64))
        return Split(images.contiguous().to(place), labels.to(target))

    train = split("train", first_of_each_class(order[held_out:], arrays["y_train"], per_class))
    mean, std = channel_statistics(train.images)
    return ImageData(
        name=name,
        train=train,
        validation=split("train", order[:held_out]) if held_out else None,
        test=split("test", test),
        classes=classes,
        mean=mean.to(target),
        std=std.to(target),
        source=source,
        title=title,
    )


def check_data_settings(
    name: str,
    source: str = "auto",
    validation: float = 0.2,
    seed: int = 0,
    limit: int | None = None,
    per_class: int | None = None,
) -> None:
    """Raise SettingError unless load_data could take these arguments."""
    check_choice("name", name, NAMES)
    check_choice("source", source, SOURCES)
    check_number("validation", validation, 0, 1, open_ends="high")
    check_whole("seed", seed, 0)
    if limit is not None:
        check_whole("limit", limit, len(archives.CLASSES[name]))
    if per_class is not None:
        check_whole("per_class", per_class, 1)


def first_of_each_class(order: np.ndarray, labels: np.ndarray, per_class: int | None) -> np.ndarray:
    """The first `per_class` indices of each class, in their order; None keeps all."""
    if per_class is None:
        return order
    counts = np.bincount(labels[order])
    if per_class > counts.min():
        allowed = (
            f"at most {counts.min()}, the smallest class's images" if counts.min() else "None, as a class has none"
        )
        raise SettingError("per_class", per_class, allowed)
    chosen = [np.flatnonzero(labels[order] == label)[:per_class] for label in range(len(counts))]
    return order[np.sort(np.concatenate(chosen))]


def load_arrays(name: str, source: str, root: Path) -> tuple[dict[str, np.ndarray], str]:
    """The arrays of a data set and the source they really came from."""
    if source == "builtin":
        return standins.stand_in(name), "builtin"
    path = root / f"{name}.npz"
    if source != "download":
        try:
            return archives.read_archive(path, name), "archive"
        except archives.ArchiveError:
            if source == "archive":
                raise
    try:
        return archives.download(name, root), "download"
    except OSError as error:
        if source == "download":
            raise
        reason = str(error)
    bar = "!" * 78
    warnings.warn(
        f"\n{bar}\n{archives.TITLES[name]} COULD NOT BE REACHED. In its place: {standins.TITLES[name]}.\n"
        f"Figures made from it say nothing about {archives.TITLES[name]}.\n"
        f"Remedy: connect to the network, or put {name}.npz into {root}.\n{reason}\n{bar}",
        StandInWarning,
        stacklevel=3,
    )
    return standins.stand_in(name), "builtin"


def stratified_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """A random order in which every prefix is stratified.

    Args:
        labels: (N,) whole numbers.
        seed: of the order.

    Returns:
        (N,) indices. Among the first n, a class with share p of all labels has p * n images, to within (1 + p * K) / 2
        for K classes, which is one where all are of one size.
    """
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    place = np.empty(len(labels))  # how far through its class an image stands, from 0 to 1
    for label in np.unique(labels):
        members = np.flatnonzero(labels[shuffled] == label)
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    return shuffled[np.argsort(place, kind="stable")]


def channel_statistics(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation (C,) of uint8 images (N, C, H, W), without a float copy of them."""
    levels = torch.arange(256, dtype=torch.float64)
    counts = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)])
    shares = counts.cpu().double() / counts[0].sum().item()
    mean = shares @ levels
    std = (shares @ levels**2 - mean**2).sqrt().clamp_min(1.0)
    return mean.float().to(images.device), std.float().to(images.device)


def batches(split: Split, data: ImageData, batch_size: int, **options) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Normalised batches of a split, in one pass: images and labels. The arguments are those of `indexed_batches`."""
    for images, labels, _ in indexed_batches(split, data, batch_size, **options):
        yield images, labels


def indexed_batches(
    split: Split,
    data: ImageData,
    batch_size: int,
    *,
    generator: torch.Generator | None = None,
    augment: str | None = None,
    epoch: int = 1,
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Normalised batches of a split, in one pass, with the indices of their images in the split.

    Args:
        split: the images and labels.
        data: the data set whose mean and std normalise them.
        batch_size: images a batch; the last one may be smaller.
        generator: a CPU generator that orders and augments them; without it they come in their own order.
        augment: None, basic (a random crop from a reflected margin of 4 pixels, and a random flip), mild (a margin of
            2), slight (mild, and a flip every other epoch) or strong (basic, jitter of colour and shape, and cutout):
            see labutils.data.augmentation.
        epoch: which pass over the split it is, from 1.

    Yields:
        images (B, C, H, W) float32, labels (B,) int64, and indices (B,) int64.
    """
    check_whole("batch_size", batch_size, 1)
    check_choice("augment", augment, AUGMENTATIONS)
    order = torch.arange(len(split)) if generator is None else torch.randperm(len(split), generator=generator)
    at_once = batch_size * max(1, CHUNK // (batch_size * split.images[0].numel()))
    for indices in moved(order, split.images.device).split(at_once):
        if augment is None:
            images = split.images.index_select(0, indices)
        else:
            images = augmented(split.images, indices, augment, generator, epoch)
        indices = moved(indices, data.device)  # of images that do not fit on the device
        labels = split.labels.index_select(0, indices)
        parts = (part.split(batch_size) for part in (data.normalise(images), labels, indices))
        yield from zip(*parts, strict=True)
