"""Speed as ratios measured in one run on the same work: against the limit, and against how others do it.

    python benchmarks/bench.py              # all lines; with words, those that have them in their name:
    python benchmarks/bench.py ResNet, fit

In a round the two sides are timed one after the other, the first to go alternating; the ratio is the median of the
rounds' ratios. A machine shared with others drifts by more than the few per cent that count here, and so hits both.
What people wait for in an explorer is measured in milliseconds.

The bars are the aims; a run says which of them it met on the machine at hand. All lines together took 4 min 16 s on two
cores of an AMD EPYC (family 26, model 2) with torch 2.15 (n = 1). Missed there, and why:

- fit takes 1.17 of the bare loop at depth 1 x 32, 1.09 at 5 x 64 and 1.07 at 40 x 64 (n = 7, 9, 3; bar 1.05), and
  batches are 0.059 of an epoch at 1 x 32 (bar 0.05). The smallest net's step takes 0.3 ms, and preparing its batch a
  twentieth of that; the bare loop gets its batches ready made. CNNs, whose steps are long, take 0.99 and 1.02;
- the usual loop without workers takes 2.5 of fit with a ResNet of width 16 (n = 1; bar 3.5; 5.3 with two workers).
"""

import atexit
import functools
import hashlib
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC
from torch import nn
from torch.nn import functional as F  # noqa: N812  the field's own abbreviation
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

import labutils as lab
from labutils.data.augmentation import augmented
from labutils.data.loading import CHUNK
from labutils.experiments.provenance import provenance
from labutils.methods.distillation import Distillation, Teacher
from labutils.notebook.explorers.background import Job
from labutils.training.numerics import autocast, prepare

SMALLEST = {"depth": 1, "width": 32}  # of the course's MLPs
TYPICAL = {"depth": 5, "width": 64}  # the one that notebook 01 trains
DEEPEST = {"depth": 40, "width": 64}
IMAGES = 40 * 128
TRAINING = lab.Training(epochs=1)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def compare(name: str, side: str, bar: float, first: Callable, second: Callable, *, rounds: int) -> bool:
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
    met = ratio <= bar if side == "<=" else ratio >= bar
    words = {"<=": "at most", ">=": "at least"}[side]
    print(
        f"{'ok    ' if met else 'MISSED'}  {name:<58} {ratio:6.3f}     "
        f"({words} {bar:g}; {a:.3f} s / {b:.3f} s, n = {rounds})",
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
    teacher = Teacher(lambda images, indices: answers[indices], Distillation("teacher", temperature=3.0, alpha=0.9))
    return lambda: lab.fit(model, data, TRAINING, loss=teacher.loss, callbacks=[teacher], progress=False)


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


def looking_up(count: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """A sweep over so many runs that are in the store already, and the bare reading of their folders' bytes."""
    store = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, store)
    base = lab.Experiment.load("mlp_mnist", profile="smoke", depth=1, width=4, epochs=1)
    experiments = [base.override(seed=seed) for seed in range(count)]
    for experiment in experiments:
        with in_store(store):
            lab.run(experiment, progress=False)

    def sweep() -> None:
        with in_store(store):
            lab.sweep(experiments, jobs=1, progress=False)

    def read() -> None:
        for path in store.glob("[!.]*/*"):
            hashlib.sha256(path.read_bytes())

    return sweep, read


@contextmanager
def in_store(store: Path) -> Iterator[None]:
    """Use a store inside."""
    before = os.environ.get("LABUTILS_RUNS")
    os.environ["LABUTILS_RUNS"] = str(store)
    try:
        yield
    finally:
        os.environ.pop("LABUTILS_RUNS")
        if before is not None:
            os.environ["LABUTILS_RUNS"] = before


def expanding(count: int) -> Callable[[], object]:
    """A grid of so many experiments."""
    return lambda: lab.grid("mlp_mnist", profile="smoke", axes={"seed": list(range(count))})


def setting(count: int) -> Callable[[], object]:
    """So many training settings, which is one of an experiment's seven sections."""
    return lambda: [lab.Training(epochs=1, seed=seed) for seed in range(count)]


def importing(module: str) -> Callable[[], object]:
    return lambda: subprocess.run([sys.executable, "-c", f"import {module}"], check=True)


def moving() -> Callable[[], float]:
    """A move of the gradient explorer, in milliseconds."""
    data = lab.load_data("mnist", validation=0, limit=1_000, device="cpu")
    explorer = lab.explorers.GradientExplorer(data, {"depth": [20, 40], "width": [64]})

    def move() -> float:
        before = explorer.picture
        explorer.choose(depth=40 if explorer.choice()["depth"] == 20 else 20)
        if explorer.picture == before:  # an explorer says what went wrong instead of raising it
            raise RuntimeError(f"nothing was drawn; the explorer says {explorer.status!r}")
        return explorer.milliseconds

    return move


class Watched(lab.explorers.TrainingExplorer):
    """An explorer that notes when it has drawn a piece of a curve."""

    def grow(self, *news: object) -> None:
        super().grow(*news)
        self.drawn.set()


@contextmanager
def in_training(explorer: Watched) -> Iterator[Job]:
    """An explorer's training in a store of its own, ended afterwards."""
    explorer.drawn = threading.Event()
    with tempfile.TemporaryDirectory() as store, in_store(Path(store)):
        job = explorer.train()
        try:
            yield job
        finally:  # before its store goes
            explorer.stop()
            job.thread.join()


def watched(name: str, **settings: object) -> Watched:
    """An explorer of an experiment at the laptop profile, with nothing to choose but the seed."""
    return Watched(lab.Experiment.load(name, profile="laptop", **settings), {"seed": [0, 1]})


def drawing(name: str, **settings: object) -> Callable[[], float]:
    """From the end of a training's first step until an explorer has drawn its point, in milliseconds."""
    explorer = watched(name, **settings)

    def draw() -> float:
        with in_training(explorer) as job:
            if not explorer.drawn.wait(timeout=120):
                raise RuntimeError(f"{name}: no point was drawn; the explorer says {explorer.status!r}")
            return 1_000 * (time.perf_counter() - job.growth.first[0])

    return draw


def stopping(name: str, **settings: object) -> Callable[[], float]:
    """From a press of Stop to the end of a training in an explorer, in milliseconds; half a second after its start."""
    explorer = watched(name, **settings)

    def stop() -> float:
        with in_training(explorer) as job:
            time.sleep(0.5)
            if not job.thread.is_alive():
                raise RuntimeError(f"{name}: nothing was left to stop; the explorer says {explorer.status!r}")
            start = time.perf_counter()
            explorer.stop()
            job.thread.join()
            return 1_000 * (time.perf_counter() - start)

    return stop


def latency(name: str, bar: float, work: Callable[[], float], rounds: int) -> bool:
    """Measure a latency in milliseconds and print its median with its bar."""
    work()  # warm up
    median = statistics.median(work() for _ in range(rounds))
    print(f"{'ok    ' if median <= bar else 'MISSED'}  {name:<58} {median:6.0f} ms  (at most {bar:.0f}; n = {rounds})")
    return median <= bar


def main() -> int:
    data = lab.load_data("mnist", validation=0, device="cpu")
    photos = lab.load_data("cifar10", validation=0, limit=IMAGES, device="cpu")
    if "builtin" in (data.source, photos.source):
        sys.exit("the bars are for MNIST and CIFAR-10, which are not here: `labutils data` fetches them")
    few = lab.load_data("cifar10", validation=0, limit=IMAGES // 8, device="cpu")
    where = provenance(data.device)
    print(f"{data.title} ({data.source}), {len(data.train):,} images an epoch, batch {TRAINING.batch_size}")
    print(f"{where['processor']}, {where['threads']} threads, torch {where['torch']}\n")

    def pass_over_batches() -> None:
        order = torch.Generator().manual_seed(0)
        for _ in lab.batches(data.train, data, TRAINING.batch_size, generator=order):
            pass

    student = lab.ResNet([1, 1, 1, 1], width=16, residual=False)
    train, test = features(20_000, 50), features(1_000, 50)
    # Made when its turn comes, because some sides take a while to prepare.
    lines = [
        ("batches / fit, an epoch, depth 1 x 32", "<=", 0.05, 7,
         lambda: (pass_over_batches, fitting(lab.MLP(**SMALLEST), data))),
        ("fit / bare loop, an epoch, depth 1 x 32", "<=", 1.05, 7,
         lambda: (fitting(lab.MLP(**SMALLEST), data), bare_loop(lab.MLP(**SMALLEST), data))),
        ("fit / bare loop, an epoch, depth 5 x 64", "<=", 1.05, 9,
         lambda: (fitting(lab.MLP(**TYPICAL), data), bare_loop(lab.MLP(**TYPICAL), data))),
        ("fit / bare loop, an epoch, depth 40 x 64", "<=", 1.05, 3,
         lambda: (fitting(lab.MLP(**DEEPEST), data), bare_loop(lab.MLP(**DEEPEST), data))),
        ("usual loop, no workers / fit, an epoch, depth 5 x 64", ">=", 2, 1,
         lambda: (usual_loop(data, TYPICAL, workers=0), fitting(lab.MLP(**TYPICAL), data))),
        ("usual loop, two workers / fit, an epoch, depth 5 x 64", ">=", 2, 1,
         lambda: (usual_loop(data, TYPICAL, workers=2), fitting(lab.MLP(**TYPICAL), data))),
        ("ResNet, fit / bare loop, width 16", "<=", 1.05, 5,
         lambda: (fitting(lab.ResNet(width=16), photos), bare_loop(lab.ResNet(width=16), photos))),
        ("ResNet, fit / bare loop, width 64", "<=", 1.05, 3,
         lambda: (fitting(lab.ResNet(width=64), few), bare_loop(lab.ResNet(width=64), few))),
        ("ResNet, usual loop, no workers / fit, width 16", ">=", 3.5, 1,
         lambda: (in_a_process(usual_loop_images, len(photos.train), 16, 0), fitting(lab.ResNet(width=16), photos))),
        ("ResNet, usual loop, two workers / fit, width 16", ">=", 3.5, 1,
         lambda: (in_a_process(usual_loop_images, len(photos.train), 16, 2), fitting(lab.ResNet(width=16), photos))),
        ("basic augmentation / fit, width 16", "<=", 0.05, 3,
         lambda: (augmenting(photos, "basic"), fitting(lab.ResNet(width=16), photos))),
        ("strong augmentation / fit, width 16", "<=", 0.05, 3,
         lambda: (augmenting(photos, "strong"), fitting(lab.ResNet(width=16), photos))),
        ("cached teacher, fit with / without, plain [1, 1, 1, 1]", "<=", 1.03, 7,
         lambda: (fitting_with_teacher(student, photos), fitting(student, photos))),
        ("linear_svm / scikit-learn's LinearSVC", "<=", 1, 1,
         lambda: (lambda: lab.linear_svm(train, test, C=0.01), lambda: LinearSVC(C=0.01).fit(*train))),
        ("linear_probe / scikit-learn's LogisticRegression", "<=", 1, 3,
         lambda: (lambda: lab.linear_probe(train, test, C=0.01), lambda: LogisticRegression(C=0.01).fit(*train))),
        ("sweep over 200 kept runs / reading their bytes", "<=", 20, 5, lambda: looking_up(200)),
        ("grid of 5,000 / 5,000 settings of one section", "<=", 50, 3, lambda: (expanding(5_000), setting(5_000))),
        ("import labutils / import torch", "<=", 1.2, 5, lambda: (importing("labutils"), importing("torch"))),
    ]  # fmt: skip
    latencies = [
        ("a move of the gradient explorer", 150, 9, moving),
        ("first point, MLP of notebook 01", 1_000, 3, lambda: drawing("mlp_mnist", epochs=50)),
        ("first point, CNN of notebook 03", 1_000, 3, lambda: drawing("cnn_depth", residual=True)),
        ("first point, student of notebook 05", 1_000, 3, lambda: drawing("distillation", limit=2_000)),
        ("Stop, MLP of notebook 01", 1_000, 3, lambda: stopping("mlp_mnist", epochs=50)),
        ("Stop, CNN of notebook 03", 1_000, 3, lambda: stopping("cnn_depth", residual=True)),
        ("Stop, teacher's answers of notebook 05", 1_000, 3, lambda: stopping("distillation", epochs=9)),
    ]
    wanted = " ".join(sys.argv[1:])
    met = [
        compare(name, side, bar, *make(), rounds=rounds) for name, side, bar, rounds, make in lines if wanted in name
    ]
    met += [latency(name, bar, make(), rounds) for name, bar, rounds, make in latencies if wanted in name]
    if not met:
        sys.exit(f"no line has {wanted!r} in its name")
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
