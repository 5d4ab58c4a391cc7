"""Data sets on disk: `<root>/<name>.npz`, read and checked, or downloaded once and kept there.

An archive holds x_train, y_train, x_test and y_test (the layout of Keras's mnist.npz). Where it is missing, the files
torchvision knows of are fetched from a list of mirrors, checked against torchvision's md5 sums, unpacked by
torchvision, and kept as that archive. The checks guard against mistakes, not against malice.
"""

import hashlib
import http.client
import itertools
import math
import os
import shutil
import sys
import urllib.request
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from labutils.files import lock, share_as, workspace

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
STAMP = "download_sha256"  # the entry in which `download` keeps the digest of the arrays it fetched: 32 bytes
KNOWN = {  # titles of archives by the first digits of their digests (see digest)
    "06b0d1f124c4e5fa": "MNIST",
    "de341baf7ecedf63": "CIFAR-10 (JPEG copy)",
    "e6c196bf09d5fb5f": "CIFAR-100",
}

LARGEST = 1 << 30  # bytes an archive may expand to: five times the largest of the three data sets

# Tried in order, after $LABUTILS_MIRROR (a folder of the same files on a server of one's own) and before the hosts
# that torchvision itself knows.
MIRRORS = {"mnist": ["https://storage.googleapis.com/cvdf-datasets/mnist/"], "cifar10": [], "cifar100": []}
TIMEOUT_S = 15  # without an answer
ATTEMPTS = 2  # a file that arrives damaged is fetched once more from the same mirror


class ArchiveError(ValueError):
    """An archive that is missing or can't be used; the message names the file and says why."""


class DownloadError(OSError):
    """No mirror gave the file; the message says of each why not."""


def read_archive(path: Path, name: str) -> dict[str, np.ndarray]:
    """Read an archive and check that it is one of this data set.

    Every size is checked before any array is expanded, and nothing is ever unpickled.

    Args:
        path: the .npz file.
        name: mnist, cifar10 or cifar100.

    Returns:
        The images (N, 28, 28) or (N, 32, 32, 3) and the labels (N,), all uint8, by the names in ARRAYS; and the stamp
        of an archive that `download` wrote.

    Raises:
        ArchiveError: the file is missing, damaged, too large, no archive at all, or of other shapes or labels.
        PermissionError, MemoryError: it can't be read now.
    """
    classes = len(CLASSES[name])
    try:
        if fault := visible_fault(path):
            raise ValueError(fault)
        with zipfile.ZipFile(path) as archive:
            # zipfile verifies the CRC-32 of every array as it reaches the array's end.
            keys = check_headers(archive, name)
            arrays = {key: npy.read_array(archive.open(f"{key}.npy"), allow_pickle=False) for key in keys}
        for part in ("train", "test"):
            images, labels = arrays[f"x_{part}"], arrays[f"y_{part}"]
            # At least one image for each class: the same floor as load_data's `limit`.
            if len(images) != len(labels) or len(labels) < classes:
                given = f"{len(images):,} images and {len(labels):,} labels"
                raise ValueError(f"{part} has {given}; allowed: as many of each, at least {classes}")
            if labels.min() < 0 or labels.max() >= classes:
                raise ValueError(f"y_{part} holds {labels.min()} to {labels.max()}; allowed: 0 to {classes - 1}")
            arrays[f"y_{part}"] = labels.astype(np.uint8)
    except FileNotFoundError as error:
        raise ArchiveError(f"{path}: no such archive") from error
    except (PermissionError, MemoryError):  # it may be whole
        raise
    except Exception as error:  # on damaged bytes zipfile, zlib and NumPy raise a dozen types with no closer base
        raise ArchiveError(f"{path} can't be read as {TITLES[name]}: {str(error) or type(error).__name__}") from error
    return arrays


def check_headers(archive: zipfile.ZipFile, name: str) -> list[str]:
    """Raise an exception unless the arrays that an archive claims to hold are a data set's; return their names.

    No more than the first kilobytes of each array are expanded.
    """
    names = archive.namelist()
    if missing := [key for key in ARRAYS if f"{key}.npy" not in names]:
        raise ValueError(f"it has no {', '.join(missing)}")
    members = {key: archive.getinfo(f"{key}.npy") for key in (*ARRAYS, STAMP) if f"{key}.npy" in names}
    if (total := sum(member.file_size for member in members.values())) > LARGEST:
        raise ValueError(f"its arrays claim {total:,} bytes; allowed: at most {LARGEST:,}")
    for key, member in members.items():
        # Any other method may expand without bound at the first byte that is read.
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{key} has compression method {member.compress_type}; allowed: stored or deflated")
        with archive.open(member.filename) as file:
            try:
                npy.read_magic(file)  # version 1.0: NumPy writes others only where a header is longer than 64 KiB
                shape, _, dtype = npy.read_array_header_1_0(file)
            except Exception as error:  # NumPy's own messages may quote all of the header, or say nothing
                raise ValueError(f"{key} has no readable header") from error
            size = file.tell() + math.prod(shape) * dtype.itemsize
        row = IMAGE_SHAPES[name] if key.startswith("x") else ()
        labels = key.startswith("y")
        if not shape or shape[1:] != row or not (dtype == np.uint8 or (labels and dtype.kind in "iu")):
            allowed = f"{'integers' if labels else 'uint8'} ({', '.join(map(str, ('N', *row)))})"
            raise ValueError(f"{key} holds {dtype} {shape}; allowed: {allowed}")
        if size != member.file_size:
            raise ValueError(f"{key} has {member.file_size:,} bytes, but {size:,} by its header")
    return list(members)


def digest(arrays: dict[str, np.ndarray]) -> bytes:
    """SHA-256 of the arrays' bytes in the order of ARRAYS, without a copy of what is uint8 and contiguous."""
    sha256 = hashlib.sha256()
    for key in ARRAYS:
        sha256.update(np.ascontiguousarray(arrays[key], dtype=np.uint8))
    return sha256.digest()


def title_of(arrays: dict[str, np.ndarray], name: str) -> str:
    """What an archive holds, for captions and records: the title of a known data set, that of `name` where `download`
    has stamped just these arrays, otherwise the file's name and the first digits of the arrays' digest."""
    found = digest(arrays)
    if STAMP in arrays and arrays[STAMP].tobytes() == found:
        return TITLES[name]
    return KNOWN.get(found.hex()[:16], f"{name}.npz ({found.hex()[:8]})")


def download(name: str, root: Path) -> dict[str, np.ndarray]:
    """Download a data set and keep it as `<root>/<name>.npz`; what has that name and can't be used is kept beside it.

    Of several processes that call this at once, one downloads and the others wait for its archive.

    Args:
        name: mnist, cifar10 or cifar100.
        root: the data folder; made if absent.

    Returns:
        What `read_archive` reads from the archive.

    Raises:
        DownloadError: no mirror gave a whole file; nothing is left behind.
    """
    path = root / f"{name}.npz"
    with lock(root / f"{name}.lock"):
        try:
            return read_archive(path, name)  # another process was faster
        except ArchiveError as error:
            if path.exists():  # perhaps the reader's own
                kept = next(free for number in itertools.count() if not (free := unusable(path, number)).exists())
                print(f"{error}; it is kept as {path.rename(kept).name}, and fetched again", file=sys.stderr)
        with workspace(path) as folder:
            arrays = fetch_with_torchvision(name, folder)
            arrays[STAMP] = np.frombuffer(digest(arrays), dtype=np.uint8)
            np.savez(folder / path.name, **arrays)
            share_as(folder / path.name, root)
            os.replace(folder / path.name, path)
    return arrays


def unusable(path: Path, number: int) -> Path:
    """Where an archive that can't be used goes, which is not the first one for numbers above 0."""
    return path.with_suffix(f".{number}.unusable" if number else ".unusable")


def torchvision_dataset(name: str) -> type:
    """torchvision's class for a data set."""
    from torchvision import datasets

    return getattr(datasets, TITLES[name].replace("-", ""))


def addresses(name: str) -> list[str]:
    """The folders on the network that a data set's files are looked for in, in this order."""
    dataset = torchvision_dataset(name)
    hosts = dataset.mirrors if name == "mnist" else [dataset.url.removesuffix(dataset.filename)]
    bases = [os.environ.get("LABUTILS_MIRROR"), *MIRRORS[name], *hosts]
    return [f"{base.rstrip('/')}/" for base in bases if base]


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
    """Fetch a file from the first of several addresses that gives it whole; DownloadError says for each why not."""
    from torchvision.datasets.utils import check_md5

    failures = []
    for url in urls:
        for _ in range(ATTEMPTS):
            try:
                download_file(url, path)
            except (OSError, ValueError, http.client.HTTPException) as error:  # no answer, or no such address
                failures.append(f"{url}: {error}")
                break
            if check_md5(path, md5):
                return
            fault = visible_fault(path) or "truncated or corrupt"
            failures.append(f"{url}: {fault} ({path.stat().st_size:,} bytes, whose md5 is not {md5})")
    raise DownloadError(f"{path.name} could not be downloaded:\n  " + "\n  ".join(failures))


def download_file(url: str, path: Path) -> None:
    """Copy what an address gives into a file, with a progress bar."""
    from tqdm.auto import tqdm

    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response, path.open("wb") as file:
        size = int(response.headers.get("Content-Length", 0)) or None
        with tqdm.wrapattr(response, "read", total=size, desc=path.name, leave=False) as body:
            shutil.copyfileobj(body, file)


def visible_fault(path: Path) -> str | None:
    """What is wrong with a file, as far as its first bytes show it: it is empty, or a web page."""
    with path.open("rb") as file:
        head = file.read(512).lstrip()
    if head.startswith(b"<"):
        return "a web page instead of data (a login page of this network, perhaps)"
    return None if head else "empty file"
