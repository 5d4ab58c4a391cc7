"""Speed as ratios measured in one run on the same work: against the limit, and against how others do it.

    python benchmarks/bench.py              # all lines; with words, those that have them in their name:
    python benchmarks/bench.py ResNet, fit

In a round the two sides are timed one after the other, the first to go alternating; the ratio is the median of the
rounds' ratios. A machine shared with others drifts by more than the few per cent that count here, and so hits both.

Measured on two cores of an AMD EPYC that is shared with others, torch 2.15, MNIST, batch 128 (n rounds):

- batches take 0.039 of an epoch of fit at depth 1 x 32 (n = 15; 0.049 to 0.056 in other runs; bar 0.05);
- fit takes 1.21 of the bare loop at depth 1 x 32 (n = 15; bar 1.05, missed), 0.98, 1.08 and 1.11 at 5 x 64 in three
  runs (n = 15), 0.99 and 1.09 at 40 x 64 in two (n = 5). The smallest net's step takes half a millisecond, and
  preparing its batch a tenth of that: gathering 128 random images and making them float32 goes through memory that the
  step has pushed out of the caches. The loop itself adds nothing that can be measured.
- a stack of eight nets of depth 40 x 64 takes 0.349 of eight calls of fit, one after the other, on the same two threads
  (n = 5; bar 0.5), and 0.367 with batch norm (n = 4). Against eight calls shared out to two processes of one thread,
  which is what a sweep did before, the whole sweep takes 0.918 (n = 5): there the products of matrices, which run at
  nine tenths of what the processor can do in either case, are most of the work;
- the usual loop takes 13.6 of fit without workers and 8.9 with two (n = 3; bar 2);
- importing labutils takes 1.03 of importing torch (n = 5; bar 1.2).

The same on CIFAR-10 with ResNet [2, 2, 2, 2]:

- fit takes 0.997 of the bare loop at width 16 (n = 7), 0.990 and 1.013 at width 64 in two runs (n = 5; bar 1.05);
- the usual loop takes 5.0 of fit at width 16 with two workers, and 2.3 without (n = 3; bar 3.5, missed without: on two
  cores workers cost more than they bring);
- a pass of basic augmentation takes 0.010 of fit at width 16, one of strong 0.040 and 0.045 (n = 7; bar 0.05);
- with a cached teacher fit of the plain [1, 1, 1, 1] takes 1.006 and 1.029 of what it takes without (n = 15), in a
  third run 1.050 (n = 7; bar 1.03). The loss itself takes 0.11 ms longer, of a step of 41: the rest is the machine's.

On features (20,000 of 128 numbers, 50 classes) linear_svm takes 0.025 of scikit-learn's LinearSVC, and linear_probe
0.215 of its LogisticRegression (n = 3; bar 1).
"""

import atexit
import functools
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC
from torch import nn
from torch.nn import functional as F  # noqa: N812  the field's own abbreviation
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

import labutils as lab
from labutils import sweeps
from labutils.augmentation import augmented
from labutils.data import CHUNK
from labutils.runs import provenance
from labutils.training import autocast, prepare

ROUNDS = 15
SMALLEST = {"depth": 1, "width": 32}  # of the course's MLPs
TYPICAL = {"depth": 5, "width": 64}  # the one that notebook 01 trains
DEEPEST = {"depth": 40, "width": 64}
NORMALISED = {**DEEPEST, "normalization": "batch"}
SEEDS = 8
IMAGES = 40 * 128
TRAINING = lab.Training(epochs=1)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def compare(
    name: str, bar: str, holds: Callable[[float], bool], first: Callable, second: Callable, rounds: int
) -> bool:
    """Time both sides in turn and print the ratio of the first to the second with its bar."""
    first(), second()  # warm up
    times = []
    for number in range(rounds):
        if number % 2:
            b, a = seconds(second), seconds(first)
        else:
            a, b = seconds(first), seconds(second)
        times.append((a, b))
    ratio = statistics.median(a / b for a, b in times)
    a, b = map(statistics.median, zip(*times, strict=True))
    met = holds(ratio)
    print(
        f"{'ok    ' if met else 'MISSED'}  {name:<58} {ratio:6.3f}  ({bar}; {a:.3f} s / {b:.3f} s, n = {rounds})",
        flush=True,
    )
    return met


def fitting(model: nn.Module, data: lab.ImageData) -> Callable[[], object]:
    """One epoch of fit."""
    return lambda: lab.fit(model, data, TRAINING, progress=False)


def bare_loop(model: nn.Module, data: lab.ImageData) -> Callable[[], object]:
    """The same passes and steps in the same precision and layout, on batches that are already there."""
    prepare(model, data.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=TRAINING.lr, fused=True)
    precision = autocast(model, data.device, TRAINING.precision)
    resident = list(lab.batches(data.train, data, TRAINING.batch_size))

    def epoch() -> None:
        for images, labels in resident:
            with precision:
                loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return epoch


def fitting_with_teacher(model: nn.Module, data: lab.ImageData) -> Callable[[], object]:
    """One epoch of fit that learns from a teacher's answers, found beforehand, as well."""
    answers = torch.randn(len(data.train), len(data.classes))

    def loss(logits: torch.Tensor, labels: torch.Tensor, taught: torch.Tensor) -> torch.Tensor:
        return lab.distillation_loss(logits, taught, labels, temperature=3.0, alpha=0.9)

    return lambda: lab.fit(
        model, data, TRAINING, loss=loss, teacher=lambda images, places: answers[places], progress=False
    )


def features(count: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (count, 128) that tell their classes now and then, and the classes."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % classes
    centres = torch.randn(classes, 128, generator=generator)
    return centres[labels] + 3 * torch.randn(count, 128, generator=generator), labels


def augmenting(data: lab.ImageData, augment: str) -> Callable[[], object]:
    """An epoch's images augmented, in chunks as large as those of `batches`, and nothing else."""
    at_once = CHUNK // data.train.images[0].numel() // TRAINING.batch_size * TRAINING.batch_size
    generator = torch.Generator().manual_seed(0)

    def once() -> None:
        for indices in torch.randperm(len(data.train), generator=generator).split(max(at_once, TRAINING.batch_size)):
            augmented(data.train.images, indices, augment, generator)

    return once


def usual_loop_images(images: int, width: int, workers: int) -> Callable[[], object]:
    """torchvision's CIFAR10, a PIL image at a time, through transforms and a DataLoader; fp32, contiguous, Adam."""
    data = lab.load_data("cifar10", validation=0, limit=images, device="cpu")
    dataset = datasets.CIFAR10.__new__(datasets.CIFAR10)  # the same images, without fetching them a second time
    dataset.data, dataset.targets = data.train.images.permute(0, 2, 3, 1).numpy(), data.train.labels.tolist()
    dataset.target_transform = None
    dataset.transform = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
        ]
    )
    loader = DataLoader(dataset, batch_size=TRAINING.batch_size, shuffle=True, num_workers=workers)
    return usual_epoch(lab.ResNet(width=width), loader)


def in_a_process(make: Callable[..., Callable[[], object]], *arguments: object) -> Callable[[], object]:
    """What `make` makes, in a process of its own, in which nothing of labutils' training has changed torch's ways."""

    @functools.cache
    def process() -> Connection:
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        context.Process(target=serve, args=(there, make, arguments)).start()  # no daemon: it may have its own workers
        atexit.register(here.send, None)
        return here

    def work() -> None:
        process().send("go")
        process().recv()

    return work


def serve(pipe: Connection, make: Callable[..., Callable[[], object]], arguments: tuple) -> None:
    """Do the work each time it is asked for."""
    work = make(*arguments)
    while pipe.recv():
        work()
        pipe.send("done")


def stacked(data: lab.ImageData, shape: dict[str, object], count: int) -> Callable[[], object]:
    """One epoch of a stack of networks that differ in their seeds."""
    models, trainings = [lab.MLP(**shape) for _ in range(count)], [replace(TRAINING, seed=s) for s in range(count)]
    return lambda: lab.fit_stack(models, data, trainings)


def one_by_one(data: lab.ImageData, shape: dict[str, object], count: int) -> Callable[[], object]:
    """One epoch of fit for each of them, one after the other."""
    models, trainings = [lab.MLP(**shape) for _ in range(count)], [replace(TRAINING, seed=s) for s in range(count)]
    return lambda: [lab.fit(model, data, each, progress=False) for model, each in zip(models, trainings, strict=True)]


def sweeping(shape: dict[str, object], count: int, largest_stack: int) -> Callable[[], object]:
    """One epoch of as many seeds by `sweep`, on all cores, stacked or not, in a store of its own."""
    axes = {"training.seed": list(range(count))}
    experiments = lab.grid("mlp_mnist", axes=axes, profile="laptop", epochs=1, **shape)

    def work() -> None:
        with tempfile.TemporaryDirectory() as store:
            os.environ["LABUTILS_RUNS"] = store
            sweeps.LARGEST_STACK = largest_stack
            lab.sweep(experiments, progress=False)

    return work


def usual_loop(data: lab.ImageData, shape: dict[str, object], workers: int) -> Callable[[], object]:
    """torchvision's MNIST, a PIL image at a time, through transforms and a DataLoader; plain Adam."""
    dataset = datasets.MNIST.__new__(datasets.MNIST)  # the same images, without fetching them a second time
    dataset.data, dataset.targets, dataset.target_transform = data.train.images[:, 0], data.train.labels, None
    dataset.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
    loader = DataLoader(dataset, batch_size=TRAINING.batch_size, shuffle=True, num_workers=workers)
    return usual_epoch(lab.MLP(**shape), loader)


def usual_epoch(model: nn.Module, loader: DataLoader) -> Callable[[], object]:
    """An epoch as labs write it."""
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=TRAINING.lr)

    def epoch() -> None:
        total, correct = 0.0, 0
        for images, labels in loader:
            optimizer.zero_grad()
            logits = model(images)
            loss = criterion(logits, labels)
            loss.backward()
            optimizer.step()
            total += loss.item()
            correct += (logits.argmax(1) == labels).sum().item()

    return epoch


def importing(module: str) -> Callable[[], object]:
    return lambda: subprocess.run([sys.executable, "-c", f"import {module}"], check=True)


def main() -> int:
    data = lab.load_data("mnist", validation=0, device="cpu")
    where = provenance(data.device)
    print(f"{data.title} ({data.source}), {len(data.train):,} images an epoch, batch {TRAINING.batch_size}")
    print(f"{where['processor']}, {where['threads']} threads, torch {where['torch']}\n")

    def pass_over_batches() -> None:
        order = torch.Generator().manual_seed(0)
        for _ in lab.batches(data.train, data, TRAINING.batch_size, generator=order):
            pass

    photos = lab.load_data("cifar10", validation=0, limit=IMAGES, device="cpu")
    few = lab.load_data("cifar10", validation=0, limit=IMAGES // 8, device="cpu")

    student = lab.ResNet([1, 1, 1, 1], width=16, residual=False)
    train, test = features(20_000, 50), features(1_000, 50)

    lines = [
        ("batches / fit, an epoch, depth 1 x 32", "at most 0.05", lambda ratio: ratio <= 0.05,
         pass_over_batches, fitting(lab.MLP(**SMALLEST), data), ROUNDS),
        ("fit / bare loop, an epoch, depth 1 x 32", "at most 1.05", lambda ratio: ratio <= 1.05,
         fitting(lab.MLP(**SMALLEST), data), bare_loop(lab.MLP(**SMALLEST), data), ROUNDS),
        ("fit / bare loop, an epoch, depth 5 x 64", "at most 1.05", lambda ratio: ratio <= 1.05,
         fitting(lab.MLP(**TYPICAL), data), bare_loop(lab.MLP(**TYPICAL), data), ROUNDS),
        ("fit / bare loop, an epoch, depth 40 x 64", "at most 1.05", lambda ratio: ratio <= 1.05,
         fitting(lab.MLP(**DEEPEST), data), bare_loop(lab.MLP(**DEEPEST), data), 5),
        ("stack of 8 / 8 fits, an epoch, depth 40 x 64", "at most 0.5", lambda ratio: ratio <= 0.5,
         stacked(data, DEEPEST, SEEDS), one_by_one(data, DEEPEST, SEEDS), 5),
        ("stack of 8 / 8 fits, the same with batch norm", "at most 0.5", lambda ratio: ratio <= 0.5,
         stacked(data, NORMALISED, SEEDS), one_by_one(data, NORMALISED, SEEDS), 5),
        ("sweep of 8, stacked / unstacked, an epoch, 40 x 64", "below 1", lambda ratio: ratio < 1,
         sweeping(DEEPEST, SEEDS, SEEDS), sweeping(DEEPEST, SEEDS, 1), 5),
        ("usual loop, no workers / fit, an epoch, depth 5 x 64", "at least 2", lambda ratio: ratio >= 2,
         usual_loop(data, TYPICAL, workers=0), fitting(lab.MLP(**TYPICAL), data), 3),
        ("usual loop, two workers / fit, an epoch, depth 5 x 64", "at least 2", lambda ratio: ratio >= 2,
         usual_loop(data, TYPICAL, workers=2), fitting(lab.MLP(**TYPICAL), data), 3),
        ("ResNet, fit / bare loop, width 16", "at most 1.05", lambda ratio: ratio <= 1.05,
         fitting(lab.ResNet(width=16), photos), bare_loop(lab.ResNet(width=16), photos), 7),
        ("ResNet, fit / bare loop, width 64", "at most 1.05", lambda ratio: ratio <= 1.05,
         fitting(lab.ResNet(width=64), few), bare_loop(lab.ResNet(width=64), few), 5),
        ("ResNet, usual loop, no workers / fit, width 16", "at least 3.5", lambda ratio: ratio >= 3.5,
         in_a_process(usual_loop_images, len(photos.train), 16, 0), fitting(lab.ResNet(width=16), photos), 3),
        ("ResNet, usual loop, two workers / fit, width 16", "at least 3.5", lambda ratio: ratio >= 3.5,
         in_a_process(usual_loop_images, len(photos.train), 16, 2), fitting(lab.ResNet(width=16), photos), 3),
        ("basic augmentation / fit, width 16", "at most 0.05", lambda ratio: ratio <= 0.05,
         augmenting(photos, "basic"), fitting(lab.ResNet(width=16), photos), 7),
        ("strong augmentation / fit, width 16", "at most 0.05", lambda ratio: ratio <= 0.05,
         augmenting(photos, "strong"), fitting(lab.ResNet(width=16), photos), 7),
        ("cached teacher, fit with / without, plain [1, 1, 1, 1]", "at most 1.03", lambda ratio: ratio <= 1.03,
         fitting_with_teacher(student, photos), fitting(student, photos), ROUNDS),
        ("linear_svm / scikit-learn's LinearSVC", "below 1", lambda ratio: ratio < 1,
         lambda: lab.linear_svm(train, test, C=0.01), lambda: LinearSVC(C=0.01).fit(*train), 3),
        ("linear_probe / scikit-learn's LogisticRegression", "below 1", lambda ratio: ratio < 1,
         lambda: lab.linear_probe(train, test, C=0.01), lambda: LogisticRegression(C=0.01).fit(*train), 3),
        ("import labutils / import torch", "at most 1.2", lambda ratio: ratio <= 1.2,
         importing("labutils"), importing("torch"), 5),
    ]  # fmt: skip
    wanted = " ".join(sys.argv[1:])
    met = [compare(*line) for line in lines if wanted in line[0]]
    if not met:
        sys.exit(f"no line has {wanted!r} in its name")
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
