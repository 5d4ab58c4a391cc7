"""Data sets on disk: `<root>/<name>.npz`, read and checked, or downloaded once and kept there.

An archive holds x_train, y_train, x_test and y_test (uint8; the layout of Keras's mnist.npz). Where it is missing,
the files torchvision knows of are fetched from a list of mirrors, checked against torchvision's md5 sums, unpacked
by torchvision, and kept as that archive.
"""

import hashlib
import os
import sys
import urllib.error
import urllib.request
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from labutils.workspaces import workspace

CLASSES = {
    "mnist": tuple("0123456789"),
    "cifar10": tuple("airplane automobile bird cat deer dog frog horse ship truck".split()),
    "cifar100": tuple(
        """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
    castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
    elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster
    man maple motorcycle mountain mouse mushroom oak orange orchid otter palm pear pickup_truck pine plain plate
    poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake
    spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout
    tulip turtle wardrobe whale willow wolf woman worm
    """.split()
    ),
}
IMAGE_SHAPES = {"mnist": (28, 28), "cifar10": (32, 32, 3), "cifar100": (32, 32, 3)}
TITLES = {"mnist": "MNIST", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
ARRAYS = ("x_train", "y_train", "x_test", "y_test")

# What an archive's images are, known by the SHA-256 of their bytes, training images first, in the archive's order.
KNOWN_IMAGES = {
    "5b92582eb909c82a": "MNIST",
    "3547dd2188c71a34": "CIFAR-10 (JPEG copy)",
    "f81a99eac2576f27": "CIFAR-100",
}

# Tried in order, after $LABUTILS_MIRROR (a folder of the same files on a server of one's own) and before the hosts
# that torchvision itself knows.
MIRRORS = {
    "mnist": ["https://storage.googleapis.com/cvdf-datasets/mnist/"],
    "cifar10": [],
    "cifar100": [],
}
TIMEOUT_S = 15
ATTEMPTS = 2  # a file that arrives damaged is fetched once more from the same mirror


class ArchiveError(ValueError):
    """An archive that is missing or damaged."""


class DownloadError(OSError):
    """No mirror gave the file; the message says what each of them did."""


class DamagedFile(OSError):
    """A file that arrived, but not as it should be."""


def read_archive(path: Path, name: str) -> dict[str, np.ndarray]:
    """Read an archive and check that it is one of this data set.

    Args:
        path: the .npz file.
        name: mnist, cifar10 or cifar100.

    Returns:
        The four arrays, and the title of one that `download` wrote.

    Raises:
        ArchiveError: the file is missing, truncated, corrupt, no archive at all, or of other shapes or labels.
    """
    if not path.is_file():
        raise ArchiveError(f"{path}: no such archive")
    try:
        # NumPy's reader verifies the CRC-32 of every array as it reads it.
        with np.load(path) as archive:
            arrays = {key: archive[key] for key in (*ARRAYS, *({"title"} & set(archive)))}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        kind = describe_damage(path) or str(error)
        raise ArchiveError(f"{path}: damaged archive: {kind}") from error
    for part in ("train", "test"):
        images, labels = arrays[f"x_{part}"], arrays[f"y_{part}"]
        if images.dtype != np.uint8 or images.shape[1:] != IMAGE_SHAPES[name]:
            raise ArchiveError(
                f"{path}: x_{part} holds {images.dtype} {images.shape}; "
                f"allowed: uint8 (N, {', '.join(map(str, IMAGE_SHAPES[name]))})"
            )
        if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
            raise ArchiveError(f"{path}: y_{part} holds {labels.dtype} {labels.shape}; allowed: one integer an image")
        if len(labels) == 0 or labels.min() < 0 or labels.max() >= len(CLASSES[name]):
            raise ArchiveError(f"{path}: y_{part} has no labels, or labels outside 0 to {len(CLASSES[name]) - 1}")
    return arrays


def title_of(arrays: dict[str, np.ndarray], name: str) -> str:
    """What an archive's images are, for captions and records: its own title, a known data set's, or a digest."""
    if "title" in arrays:
        return str(arrays["title"])
    digest = hashlib.sha256(arrays["x_train"].tobytes() + arrays["x_test"].tobytes()).hexdigest()
    return KNOWN_IMAGES.get(digest[:16], f"{name}.npz ({digest[:8]})")


def download(name: str, root: Path) -> dict[str, np.ndarray]:
    """Download a data set and keep it as `<root>/<name>.npz`.

    Of several processes that call this at once, one downloads and the others wait for its archive.

    Args:
        name: mnist, cifar10 or cifar100.
        root: the data folder; made if absent.

    Returns:
        The four arrays.

    Raises:
        DownloadError: no mirror gave a whole file; nothing is left behind.
    """
    from filelock import FileLock

    root.mkdir(parents=True, exist_ok=True)
    path = root / f"{name}.npz"
    with FileLock(root / f"{name}.lock"):
        try:
            return read_archive(path, name)  # another process was faster
        except ArchiveError:
            pass
        with workspace(path) as folder:
            arrays = fetch_with_torchvision(name, folder) | {"title": np.array(TITLES[name])}
            np.savez(folder / path.name, **arrays)
            os.replace(folder / path.name, path)
    return arrays


def torchvision_dataset(name: str) -> type:
    """torchvision's class for a data set."""
    from torchvision import datasets

    return {"mnist": datasets.MNIST, "cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]


def addresses(name: str) -> list[str]:
    """The folders on the network that a data set's files are looked for in, in this order."""
    dataset = torchvision_dataset(name)
    hosts = dataset.mirrors if name == "mnist" else [dataset.url.removesuffix(dataset.filename)]
    own_mirror = os.environ.get("LABUTILS_MIRROR")
    return [f"{base.rstrip('/')}/" for base in ([own_mirror] if own_mirror else []) + MIRRORS[name] + hosts]


def fetch_with_torchvision(name: str, folder: Path) -> dict[str, np.ndarray]:
    """Fetch a data set's files into a folder and read them with torchvision."""
    dataset = torchvision_dataset(name)
    files = dataset.resources if name == "mnist" else [(dataset.filename, dataset.tgz_md5)]
    place = folder / "MNIST" / "raw" if name == "mnist" else folder
    place.mkdir(parents=True, exist_ok=True)
    for filename, md5 in files:
        fetch([base + filename for base in addresses(name)], place / filename, md5)
    # The files are in place and whole, so torchvision downloads nothing: it unpacks and reads them.
    train, test = (dataset(folder, train=part, download=True) for part in (True, False))
    arrays = (train.data, train.targets, test.data, test.targets)
    return {key: np.asarray(array, dtype=np.uint8) for key, array in zip(ARRAYS, arrays, strict=True)}


def fetch(urls: Sequence[str], path: Path, md5: str) -> None:
    """Fetch a file from the first of several addresses that gives it whole.

    Args:
        urls: addresses of the same file, best first.
        path: where to put it; appears only when whole.
        md5: its sum, 32 hexadecimal digits.

    Raises:
        DownloadError: none gave it; the message says for each address why not.
    """
    partial = path.with_name(path.name + ".partial")
    failures = []
    for url in urls:
        for _ in range(ATTEMPTS):
            try:
                transfer(url, partial)
                check_file(partial, md5)
            except DamagedFile as error:
                failures.append(f"{url}: {error}")
                print(f"{url}: {error}; trying again", file=sys.stderr)
            except OSError as error:
                failures.append(f"{url}: {getattr(error, 'reason', error)}")
                break
            else:
                partial.replace(path)
                return
            finally:
                partial.unlink(missing_ok=True)
    raise DownloadError(f"{path.name} could not be downloaded:\n  " + "\n  ".join(failures))


def transfer(url: str, path: Path) -> None:
    """Copy what an address gives into a file, with a progress bar; from the start each time."""
    from tqdm.auto import tqdm

    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response, path.open("wb") as file:
        expected = int(response.headers.get("Content-Length") or 0)
        received = 0
        with tqdm(total=expected or None, unit="B", unit_scale=True, desc=url.rsplit("/", 1)[-1], leave=False) as bar:
            while chunk := response.read(1 << 18):
                file.write(chunk)
                received += len(chunk)
                bar.update(len(chunk))
    if received < expected:
        raise DamagedFile(f"truncated: {received:,} of {expected:,} bytes arrived")


def check_file(path: Path, md5: str) -> None:
    """Raise DamagedFile, saying how, unless a file's md5 is the one expected."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if found != md5:
        raise DamagedFile(describe_damage(path) or f"corrupt: md5 {found}, expected {md5}")


def describe_damage(path: Path) -> str | None:
    """Name a damage that can be told from the first bytes: an empty file or a web page."""
    with path.open("rb") as file:
        head = file.read(512).lstrip().lower()
    if not head:
        return "empty file"
    if head.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "a web page instead of data (a login page of this network, perhaps)"
    return None
