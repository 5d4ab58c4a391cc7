"""Built-in stand-ins for the data sets: they need no network and no files, and look only roughly alike.

MNIST is stood in for by scikit-learn's 8x8 digits, enlarged to 28x28. CIFAR is stood in for by drawn coloured
shapes: the 10 classes are 10 shapes, each filled with a random pattern; the 100 classes are the pairs of those 10
shapes and 10 patterns, so that what a network learns of shapes from the first helps it with the second.
"""

import importlib.util
from pathlib import Path

import numpy as np

SHAPES = ("disc", "square", "triangle", "cross", "ring", "frame", "bar", "half-disc", "chevron", "star")
PATTERNS = (
    "plain",
    "rows",
    "columns",
    "diagonals",
    "checks",
    "dots",
    "fading",
    "split",
    "circles",
    "speckled",
)
TITLES = {
    "mnist": "scikit-learn digits, standing in for MNIST",
    "cifar10": "drawn shapes, standing in for CIFAR-10",
    "cifar100": "drawn patterned shapes, standing in for CIFAR-100",
}
CLASSES = {
    "mnist": tuple("0123456789"),
    "cifar10": SHAPES,
    "cifar100": tuple(f"{pattern} {shape}" for shape in SHAPES for pattern in PATTERNS),
}
TEST_SHARE = 0.2
SIZE = 32


def stand_in(name: str) -> dict[str, np.ndarray]:
    """The built-in stand-in for a data set, in the layout of an archive.

    Args:
        name: mnist, cifar10 or cifar100.

    Returns:
        x_train, y_train, x_test and y_test, uint8; always the same.
    """
    images, labels = {"mnist": digits, "cifar10": shapes, "cifar100": patterned_shapes}[name]()
    train = len(images) - round(len(images) * TEST_SHARE)
    return {
        "x_train": images[:train],
        "y_train": labels[:train],
        "x_test": images[train:],
        "y_test": labels[train:],
    }


def digits() -> tuple[np.ndarray, np.ndarray]:
    """1,797 handwritten digits, (N, 28, 28): 8x8 scans enlarged to 20x20 and centred, as MNIST's digits are."""
    import torch

    # What sklearn.datasets.load_digits reads, without the seconds that importing scikit-learn takes.
    package = Path(importlib.util.find_spec("sklearn").origin).parent
    rows = np.loadtxt(package / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    rows = rows[np.random.default_rng(0).permutation(len(rows))]
    scans = torch.from_numpy(rows[:, :-1].reshape(-1, 1, 8, 8) * (255 / 16))
    enlarged = torch.nn.functional.interpolate(scans, size=(20, 20), mode="bilinear")
    images = torch.nn.functional.pad(enlarged, (4, 4, 4, 4))[:, 0]
    return images.round().to(torch.uint8).numpy(), rows[:, -1].astype(np.uint8)


def shapes() -> tuple[np.ndarray, np.ndarray]:
    """5,000 drawn shapes in 10 classes, (N, 32, 32, 3), each filled with a pattern that says nothing of its class."""
    rng = np.random.default_rng(10)
    labels = rng.permutation(np.arange(5_000) % len(SHAPES))
    return draw(labels, rng.integers(len(PATTERNS), size=len(labels)), rng), labels.astype(np.uint8)


def patterned_shapes() -> tuple[np.ndarray, np.ndarray]:
    """10,000 drawn shapes in 100 classes, (N, 32, 32, 3): class 10 s + p is shape s filled with pattern p."""
    rng = np.random.default_rng(100)
    labels = rng.permutation(np.arange(10_000) % (len(SHAPES) * len(PATTERNS)))
    return draw(*np.divmod(labels, len(PATTERNS)), rng), labels.astype(np.uint8)


def draw(shape: np.ndarray, pattern: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw shapes at random places, sizes, angles and colours over noise.

    Args:
        shape: (N,) indices into SHAPES.
        pattern: (N,) indices into PATTERNS.
        rng: where all chance comes from.

    Returns:
        (N, 32, 32, 3) uint8.
    """
    count = len(shape)

    def uniform(low: float, high: float) -> np.ndarray:
        return rng.uniform(low, high, (count, 1, 1)).astype(np.float32)

    axis = np.linspace(-1, 1, SIZE, dtype=np.float32)
    y, x = axis[None, :, None] - uniform(-0.25, 0.25), axis[None, None, :] - uniform(-0.25, 0.25)
    angle, size = uniform(-0.35, 0.35), uniform(0.5, 0.75)
    u = (x * np.cos(angle) - y * np.sin(angle)) / size
    v = (x * np.sin(angle) + y * np.cos(angle)) / size

    inside = chosen_layers(shape, outlines(u, v))
    fill = chosen_layers(pattern, fillings(u, v, uniform(0, 2 * np.pi), rng))[..., None]
    light, dark = rng.uniform(130, 255, (2, count, 1, 1, 3)).astype(np.float32)
    ground = rng.uniform(20, 110, (count, 1, 1, 3)) + rng.normal(0, 12, (count, SIZE, SIZE, 1))
    drawn = fill * light + (1 - fill) * 0.45 * dark
    return np.where(inside[..., None], drawn, ground).clip(0, 255).astype(np.uint8)


def chosen_layers(index: np.ndarray, layers: list[np.ndarray]) -> np.ndarray:
    """Layer index[i] of image i, from layers of (N, H, W) each."""
    chosen = np.empty_like(layers[0])
    for number, layer in enumerate(layers):
        chosen[index == number] = layer[index == number]
    return chosen


def outlines(u: np.ndarray, v: np.ndarray) -> list[np.ndarray]:
    """Where each of SHAPES lies, (N, H, W) booleans, in coordinates in which a shape spans -1 to 1."""
    radius, box = np.hypot(u, v), np.maximum(np.abs(u), np.abs(v))
    star = 0.65 + 0.35 * np.cos(5 * np.arctan2(u, -v))
    return [
        radius < 0.9,
        box < 0.8,
        (v < 0.75) & (np.abs(u) < (v + 0.95) * 0.55),
        (box < 0.95) & (np.minimum(np.abs(u), np.abs(v)) < 0.32),
        (radius < 1.0) & (radius > 0.55),
        (box < 0.9) & (box > 0.5),
        (np.abs(v) < 0.35) & (np.abs(u) < 1.15),
        (radius < 1.0) & (v < 0),
        (np.abs(v - np.abs(u) + 0.3) < 0.38) & (np.abs(u) < 1.0),
        radius < star,
    ]


def fillings(u: np.ndarray, v: np.ndarray, phase: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """How bright each of PATTERNS is, (N, H, W) from 0 to 1, in a shape's own coordinates."""
    rows, columns = np.sin(9 * v + phase), np.sin(9 * u + phase)
    layers = [
        np.ones_like(rows),
        rows > 0,
        columns > 0,
        np.sin(6.5 * (u + v) + phase) > 0,
        rows * columns > 0,
        np.sin(11 * v + phase) * np.sin(11 * u + phase) > 0.35,
        ((u + 1) / 2).clip(0, 1),
        v > 0,
        np.sin(13 * np.hypot(u, v) + phase) > 0,
        rng.random(rows.shape) > 0.5,
    ]
    return [np.asarray(layer, np.float32) for layer in layers]
