"""Archives are damaged in every way we could think of; downloads come from a server on this machine.

The data set is a tiny one in MNIST's own file format; one test has a tiny CIFAR-100.
"""

import gzip
import hashlib
import http.server
import io
import multiprocessing
import os
import pickle
import stat
import struct
import tarfile
import threading
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import datasets

import labutils as lab
from labutils.data import archives


def idx(array: np.ndarray) -> bytes:
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return gzip.compress(header + array.tobytes(), mtime=0)


RNG = np.random.default_rng(0)
ARRAYS = {
    "x_train": RNG.integers(0, 256, (60, 28, 28), dtype=np.uint8),
    "y_train": np.arange(60, dtype=np.uint8) % 10,
    "x_test": RNG.integers(0, 256, (20, 28, 28), dtype=np.uint8),
    "y_test": np.arange(20, dtype=np.uint8) % 10,
}
FIRST = "train-images-idx3-ubyte.gz"
FILES = {
    FIRST: idx(ARRAYS["x_train"]),
    "train-labels-idx1-ubyte.gz": idx(ARRAYS["y_train"]),
    "t10k-images-idx3-ubyte.gz": idx(ARRAYS["x_test"]),
    "t10k-labels-idx1-ubyte.gz": idx(ARRAYS["y_test"]),
}
LOGIN_PAGE = b"<!DOCTYPE html><html>Please log in to this network</html>"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "mnist.npz"


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    """A file for hypothesis to overwrite, example by example."""
    return tmp_path_factory.mktemp("scratch") / "mnist.npz"


def check_whole(arrays):
    for key, array in ARRAYS.items():
        assert np.array_equal(arrays[key], array)


# Reading


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npy_with_header(header: bytes, body: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + body


def header_of(shape: object, descr: str = "|u1") -> bytes:
    return repr({"descr": descr, "fortran_order": False, "shape": shape}).encode()


def npz(compression: int = zipfile.ZIP_STORED, **changes: np.ndarray | bytes | None) -> bytes:
    """The tiny archive with some members replaced, by arrays or by bytes, or left out."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for key, content in (ARRAYS | changes).items():
            if content is not None:
                archive.writestr(f"{key}.npy", content if isinstance(content, bytes) else npy(content))
    return file.getvalue()


def with_directory(content: bytes, *, flags: int = 0, method: int = 0, size: int | None = None) -> bytes:
    """A zip file whose directory claims these flags, compression method and size of its first member."""
    content = bytearray(content)
    entry = content.index(b"PK\x01\x02")
    struct.pack_into("<HH", content, entry + 8, flags, method)
    if size is not None:
        struct.pack_into("<I", content, entry + 24, size)
    return bytes(content)


def flipped(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


UNPICKLED = []


class Telltale:
    def __reduce__(self):
        return UNPICKLED.append, ("unpickled",)


def objects() -> bytes:
    return npy(np.array([Telltale()] * 60, dtype=object))


DEFLATED = npz(zipfile.ZIP_DEFLATED)  # its first member's data begin at byte 41

DAMAGES = {
    "empty": (b"", "empty file"),
    "blank": (b"\n" * 9, "empty file"),
    "web page": (b"\n" + LOGIN_PAGE, "a web page instead of data"),
    "one array": (npy(ARRAYS["x_train"]), "not a zip file"),
    "pickle": (pickle.dumps(Telltale()), "not a zip file"),
    "truncated": (npz()[:-500], "not a zip file"),
    "flipped": (flipped(npz(), 5_000), "CRC-32"),
    "corrupt deflate stream": (b"\x07".join([DEFLATED[:41], DEFLATED[42:]]), "has no readable header"),
    "encrypted": (with_directory(npz(), flags=1), "x_train.npy' is encrypted"),
    "unknown compression": (with_directory(npz(), method=99), "method 99"),
    "bzip2": (npz(zipfile.ZIP_BZIP2), "method 12"),
    "missing array": (npz(y_test=None), "it has no y_test"),
    "empty member": (npz(x_train=b""), "has no readable header"),
    "text member": (npz(y_train=LOGIN_PAGE), "has no readable header"),
    "pickled member": (npz(y_train=pickle.dumps(Telltale())), "has no readable header"),
    "objects": (npz(x_train=objects()), "x_train holds object"),
    "7 TiB": (npz(x_train=npy_with_header(header_of((10**10, 28, 28)))), "7,840,000,000,0.. by its header"),
    "70 PiB": (npz(x_train=npy_with_header(header_of((10**14, 28, 28)))), "by its header"),
    "beyond 64 bits": (npz(x_train=npy_with_header(header_of((10**30, 28, 28)))), "by its header"),
    "4 GB in the directory": (with_directory(npz(), size=4_000_000_000), "claim 4,000,0.* at most 1,073,741,824"),
    "nested header": (npz(x_train=npy_with_header(b"(" * 9_000)), "has no readable header"),
    "unary header": (npz(x_train=npy_with_header(b"-" * 9_000 + b"1")), "has no readable header"),
    "cut header": (npz(x_train=npy_with_header(header_of((60, 28, 28))[:-3])), "has no readable header"),
    "long header": (npz(x_train=npy_with_header(b" " * 60_000)), "has no readable header"),
    "other header": (npz(x_train=npy_with_header(b"[1, 2]")), "has no readable header"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_archive_is_named_and_fetched_again(server, path, capsys, damage):
    content, named = DAMAGES[damage]
    path.write_bytes(content)
    with pytest.raises(lab.ArchiveError, match=rf"mnist\.npz can't be read as MNIST: .*({named})"):
        lab.load_data("mnist", source="archive", root=path.parent)
    data = lab.load_data("mnist", root=path.parent)
    assert data.source == "download"
    said = capsys.readouterr().err
    assert "can't be read as MNIST" in said
    assert "it is kept as mnist.unusable" in said
    assert path.with_suffix(".unusable").read_bytes() == content
    assert UNPICKLED == []
    check_whole(archives.read_archive(path, "mnist"))


def test_a_second_archive_that_can_not_be_used_is_kept_beside_the_first(server, path):
    for content in (b"the first", b"the second"):
        path.write_bytes(content)
        lab.load_data("mnist", root=path.parent)
    assert path.with_suffix(".unusable").read_bytes() == b"the first"
    assert path.with_suffix(".1.unusable").read_bytes() == b"the second"


@pytest.mark.parametrize("error", [MemoryError, PermissionError])
def test_an_archive_that_can_not_be_read_now_stays(server, path, monkeypatch, error):
    lab.load_data("mnist", root=path.parent)
    content = path.read_bytes()

    def fail(*arguments, **options):
        raise error("not now")

    monkeypatch.setattr(archives.npy, "read_array", fail)
    with pytest.raises(error):
        lab.load_data("mnist", root=path.parent)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"x_train": np.zeros((60, 14, 14), np.uint8)}, r"x_train holds uint8 \(60, 14, 14\); .* uint8 \(N, 28, 28\)"),
        ({"x_test": np.zeros((20, 28, 28), np.float32)}, "x_test holds float32"),
        ({"x_test": np.zeros((), np.uint8)}, "x_test holds"),
        ({"y_test": np.zeros((), np.uint8)}, r"y_test holds uint8 \(\)"),
        ({archives.STAMP: np.array("MNIST")}, f"{archives.STAMP} holds"),
        ({"y_train": np.zeros(60, np.float32)}, r"y_train holds float32 \(60,\); .* integers \(N\)"),
        ({"y_train": np.zeros(60, "m8[s]")}, "y_train holds timedelta64"),
        ({"y_train": np.zeros((60, 1), np.uint8)}, "y_train holds"),
        ({"y_train": np.zeros(59, np.uint8)}, "60 images and 59 labels"),
        ({"y_test": np.full(20, 10, np.uint8)}, "y_test holds 10 to 10; allowed: 0 to 9"),
        ({"y_train": np.arange(60) % 10 - 1}, "y_train holds -1 to 8"),
        ({"x_train": ARRAYS["x_train"][:1], "y_train": ARRAYS["y_train"][:1]}, "train has 1 images .* at least 10"),
        ({"x_test": ARRAYS["x_test"][:0], "y_test": ARRAYS["y_test"][:0]}, "test has 0 images"),
        ({"x_test": ARRAYS["x_test"][:9], "y_test": ARRAYS["y_test"][:9]}, "test has 9 images"),
    ],
)
def test_an_archive_of_something_else_is_refused(path, changes, named):
    path.write_bytes(npz(**changes))
    with pytest.raises(lab.ArchiveError, match=rf"mnist\.npz can't be read as MNIST: .*{named}"):
        lab.load_data("mnist", source="archive", root=path.parent)


def test_a_missing_archive_is_named(tmp_path):
    with pytest.raises(lab.ArchiveError, match=r"cifar100\.npz: no such archive"):
        lab.load_data("cifar100", source="archive", root=tmp_path)


def test_a_folder_in_the_archives_place_is_named(path):
    path.mkdir()
    with pytest.raises(lab.ArchiveError, match=r"mnist\.npz can't be read as MNIST: .*directory"):
        archives.read_archive(path, "mnist")


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("dtype", ["u1", "<i8", ">i4"])
def test_labels_of_any_integer_type_are_read_as_uint8(path, compression, dtype):
    path.write_bytes(npz(compression, y_train=ARRAYS["y_train"].astype(dtype)))
    arrays = archives.read_archive(path, "mnist")
    check_whole(arrays)
    assert arrays["y_train"].dtype == np.uint8


# Blank images deflate to next to nothing, so that most flips hit a header.
BLANK = {"x_train": np.zeros((10, 28, 28), np.uint8), "y_train": np.arange(10)}
BLANK |= {"x_test": BLANK["x_train"], "y_test": BLANK["y_train"]}
SMALL = npz(zipfile.ZIP_DEFLATED, **BLANK)


@given(
    flips=st.lists(st.tuples(st.integers(0, len(SMALL) - 1), st.integers(1, 255)), max_size=3),
    end=st.none() | st.integers(0, len(SMALL)),
)
@settings(max_examples=200, deadline=None)
def test_random_damage_is_an_archive_error_or_does_no_harm(scratch, flips, end):
    content = bytearray(SMALL)
    for position, bits in flips:
        content[position] ^= bits
    scratch.write_bytes(content[:end])
    try:
        arrays = archives.read_archive(scratch, "mnist")
    except lab.ArchiveError:
        return
    assert all(np.array_equal(arrays[key], array) for key, array in BLANK.items())


@given(
    edits=st.lists(
        st.tuples(st.integers(0, 70), st.integers(0, 8), st.text("()[]{}'\",:0123456789-+|OuiVSL \n\\#\0", max_size=8)),
        min_size=1,
        max_size=3,
    )
)
@settings(max_examples=200, deadline=None)
@pytest.mark.filterwarnings("ignore")  # NumPy's and Python's, about odd headers
def test_garbled_headers_are_archive_errors(scratch, edits):
    header = header_of((10, 28, 28)).decode()
    for start, length, text in edits:
        header = header[:start] + text + header[start + length :]
    scratch.write_bytes(npz(**BLANK | {"x_train": npy_with_header(header.encode(), bytes(7840))}))
    try:
        arrays = archives.read_archive(scratch, "mnist")
    except lab.ArchiveError:
        return
    assert not arrays["x_train"].any()  # another spelling of the same header


@pytest.fixture
def expanded(monkeypatch):
    """The sizes of all pieces that are read from members of zip files."""
    sizes = []
    read = zipfile.ZipExtFile.read

    def counted(self, n=-1):
        piece = read(self, n)
        sizes.append(len(piece))
        return piece

    monkeypatch.setattr(zipfile.ZipExtFile, "read", counted)
    return sizes


def deflated(images: int, block: bytes, blocks: int, size: int) -> bytes:
    """An archive whose training images are so many by their header, `size` bytes by the directory, and truly the
    deflated block that many times over."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    header = packer.compress(npy_with_header(header_of((images, 28, 28)))) + packer.flush(zlib.Z_FULL_FLUSH)
    return with_directory(npz(x_train=header + blocks * block), method=zipfile.ZIP_DEFLATED, size=size)


def zeros(size: int) -> bytes:
    """A deflated block that may be repeated."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(bytes(size)) + packer.flush(zlib.Z_FULL_FLUSH)


def size_of(images: int) -> int:
    return len(npy_with_header(header_of((images, 28, 28)))) + images * 784


@pytest.mark.parametrize(
    ("claimed", "images", "named"),
    [
        (size_of(2_000_000), 2_000_000, "claim 1,568,.* at most 1,073,741,824"),
        (size_of(1_000_000), 60, "x_train has 784,.* by its header"),
    ],
)
def test_a_bomb_is_refused_unexpanded(path, expanded, claimed, images, named):
    path.write_bytes(deflated(images, zeros(20_000 * 784), blocks=100, size=claimed))
    with pytest.raises(lab.ArchiveError, match=named):
        archives.read_archive(path, "mnist")
    assert sum(expanded) < 1_000


def test_a_bomb_that_hides_its_size_is_expanded_no_further_than_it_claims(path, expanded):
    path.write_bytes(deflated(60, zeros(20_000 * 784), blocks=100, size=size_of(60)))
    with pytest.raises(lab.ArchiveError, match="CRC-32"):
        archives.read_archive(path, "mnist")
    assert sum(expanded) < 2 * size_of(60)


def test_a_stream_that_breaks_off_is_named(path):
    path.write_bytes(deflated(60, zeros(30 * 784) + b"\x07", blocks=1, size=size_of(60)))
    with pytest.raises(lab.ArchiveError, match="invalid block type"):
        archives.read_archive(path, "mnist")


# Titles


def test_known_data_sets_are_told_by_images_and_labels(path, monkeypatch):
    known = hashlib.sha256(b"".join(array.tobytes() for array in ARRAYS.values())).hexdigest()
    monkeypatch.setitem(archives.KNOWN, known[:16], "Tiny MNIST")
    path.write_bytes(npz(y_train=ARRAYS["y_train"].astype(np.int64)))
    assert lab.load_data("mnist", source="archive", root=path.parent).title == "Tiny MNIST"
    for key, array in ARRAYS.items():
        other = {key: array[::-1]}
        assert archives.title_of(ARRAYS | other, "mnist") == f"mnist.npz ({archives.digest(ARRAYS | other).hex()[:8]})"


def test_what_an_archive_calls_itself_is_not_believed(path):
    path.write_bytes(npz(title=np.array("MNIST")))
    assert lab.load_data("mnist", source="archive", root=path.parent).title.startswith("mnist.npz (")


def test_a_download_keeps_its_title_until_its_arrays_change(server, path):
    arrays = archives.download("mnist", path.parent)
    assert archives.title_of(arrays, "mnist") == "MNIST"
    assert archives.title_of(archives.read_archive(path, "mnist"), "mnist") == "MNIST"
    arrays["y_test"][0] += 1
    np.savez(path, **arrays)
    assert archives.title_of(archives.read_archive(path, "mnist"), "mnist").startswith("mnist.npz (")


def test_a_title_takes_no_copy_of_the_images():
    arrays = ARRAYS | {"x_train": np.zeros((10_000, 28, 28), np.uint8)}
    tracemalloc.start()
    archives.title_of(arrays, "mnist")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


# Downloads


class Server(http.server.ThreadingHTTPServer):
    """Serves `files`; `faults` holds, by file, what goes wrong at the first requests for it.

    A file asked for in a folder that bears a fault's name has that fault each time.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = dict(FILES)
        self.faults: dict[str, list[str]] = {}
        self.requests: list[str] = []
        self.stalled, self.ended = threading.Event(), threading.Event()
        self.base = f"http://127.0.0.1:{self.server_port}/"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        *folders, name = self.path.strip("/").split("/")
        self.server.requests.append(name)
        body = self.server.files[name]
        faults = folders or self.server.faults.get(name)
        fault = faults.pop(0) if faults else None
        if fault == "missing":
            self.send_error(404)
            return
        if fault == "garbage":
            self.wfile.write(b"garbage\r\n\r\n")
            return
        if fault == "page":
            body = LOGIN_PAGE
        if fault == "corrupt":
            body = flipped(body, 100)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if fault in ("truncated", "stalled") else body)
        if fault == "stalled":
            self.wfile.flush()
            self.server.stalled.set()
            self.server.ended.wait(60)

    def log_message(self, *arguments):
        pass


REFUSED = "http://127.0.0.1:9/"
REAL_ADDRESSES = archives.addresses


@pytest.fixture
def server(monkeypatch):
    with Server() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        resources = [(name, hashlib.md5(body).hexdigest()) for name, body in FILES.items()]
        monkeypatch.setattr(datasets.MNIST, "resources", resources)
        monkeypatch.setattr(archives, "addresses", lambda name: [server.base])
        yield server
        server.ended.set()
        server.shutdown()


def check_alone(path):
    """Nothing but the archive and its lock is in the folder."""
    assert {entry.name for entry in path.parent.iterdir()} == {"mnist.npz", "mnist.lock"}


def test_a_download_is_kept_as_the_archive(server, path, capsys):
    data = lab.load_data("mnist", root=path.parent, validation=0)
    assert (data.source, data.title) == ("download", "MNIST")
    assert len(server.requests) == 4
    again = lab.load_data("mnist", root=path.parent, validation=0)
    assert (again.source, again.title) == ("archive", "MNIST")
    assert len(server.requests) == 4
    assert np.array_equal(again.train.images, data.train.images)
    check_alone(path)
    assert capsys.readouterr() == ("", "")  # $TQDM_DISABLE is set


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
def test_a_download_is_as_open_as_its_folder_whatever_the_umask_says(server, path):
    path.parent.chmod(0o775)
    before = os.umask(0o077)
    try:
        lab.load_data("mnist", root=path.parent)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o664
    assert stat.S_IMODE((path.parent / "mnist.lock").stat().st_mode) == 0o666


@pytest.mark.parametrize("fault", ["truncated", "corrupt", "page"])
def test_a_damaged_file_is_fetched_again(server, tmp_path, fault):
    server.faults[FIRST] = [fault]
    check_whole(archives.download("mnist", tmp_path))
    assert server.requests.count(FIRST) == 2


def test_a_mirror_that_fails_gives_way_to_the_next(server, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "addresses", lambda name: [REFUSED, f"{server.base}corrupt/", server.base])
    check_whole(archives.download("mnist", tmp_path))


def test_when_every_mirror_fails_the_error_says_of_each_why_and_nothing_is_left(server, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "TIMEOUT_S", 0.2)
    reasons = {
        REFUSED: "refused",
        "/no/address/": "unknown url type",
        f"{server.base}missing/": "404: Not Found",
        f"{server.base}garbage/": "garbage",
        f"{server.base}stalled/": "timed out",
        f"{server.base}page/": "a web page instead of data",
        f"{server.base}truncated/": "truncated or corrupt",
        f"{server.base}corrupt/": f"md5 is not {datasets.MNIST.resources[0][1]}",
    }
    monkeypatch.setattr(archives, "addresses", lambda name: list(reasons))
    with pytest.raises(lab.DownloadError, match=FIRST) as caught:
        lab.load_data("mnist", source="download", root=tmp_path)
    lines = str(caught.value).splitlines()[1:]
    for address, reason in reasons.items():
        told = [line for line in lines if line.strip().startswith(address)]
        assert told
        assert all(reason in line for line in told), told
    assert {entry.name for entry in tmp_path.iterdir()} <= {"mnist.lock"}


def test_an_own_mirror_comes_first(server, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "addresses", REAL_ADDRESSES)
    monkeypatch.setenv("LABUTILS_MIRROR", server.base.rstrip("/"))
    check_whole(archives.download("mnist", tmp_path))
    assert len(server.requests) == 4
    addresses = archives.addresses("cifar10")
    assert addresses[0] == server.base
    assert any("toronto" in address for address in addresses)


def test_a_folder_on_a_shared_drive_can_be_the_mirror(server, tmp_path, monkeypatch):
    folder = tmp_path / "mirror"
    folder.mkdir()
    for name, body in FILES.items():
        (folder / name).write_bytes(body)
    monkeypatch.setattr(archives, "addresses", lambda name: [f"{folder.as_uri()}/"])
    check_whole(archives.download("mnist", tmp_path))


def test_a_cifar_download_is_unpacked(server, tmp_path, monkeypatch):
    images = RNG.integers(0, 256, (100, 3, 32, 32), dtype=np.uint8)
    parts = {"data": images.reshape(100, 3072), "fine_labels": list(range(100))}
    members = {"train": parts, "test": parts, "meta": {"fine_label_names": list(archives.CLASSES["cifar100"])}}
    file, md5 = io.BytesIO(), {}
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, content in members.items():
            body = pickle.dumps(content)
            md5[name] = hashlib.md5(body).hexdigest()
            member = tarfile.TarInfo(f"cifar-100-python/{name}")
            member.size = len(body)
            archive.addfile(member, io.BytesIO(body))
    server.files[datasets.CIFAR100.filename] = file.getvalue()
    monkeypatch.setattr(datasets.CIFAR100, "tgz_md5", hashlib.md5(file.getvalue()).hexdigest())
    monkeypatch.setattr(datasets.CIFAR100, "train_list", [["train", md5["train"]]])
    monkeypatch.setattr(datasets.CIFAR100, "test_list", [["test", md5["test"]]])
    monkeypatch.setattr(datasets.CIFAR100, "meta", datasets.CIFAR100.meta | {"md5": md5["meta"]})

    data = lab.load_data("cifar100", root=tmp_path, validation=0, device="cpu")
    assert (data.source, data.title) == ("download", "CIFAR-100")
    assert np.array_equal(data.test.images, images)
    assert data.test.labels.tolist() == list(range(100))
    assert {entry.name for entry in tmp_path.iterdir()} == {"cifar100.npz", "cifar100.lock"}


# A forked process inherits the server's address and the md5 sums that the fixture has put in place.
FORK = multiprocessing.get_context("fork")


def download_together(root, barrier):
    barrier.wait(60)
    archives.download("mnist", root)


def test_two_processes_get_one_good_archive(server, path):
    barrier = FORK.Barrier(2)
    processes = [FORK.Process(target=download_together, args=(path.parent, barrier)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(server.requests) == 4
    check_whole(archives.read_archive(path, "mnist"))


def test_what_a_killed_download_left_goes_with_the_next(server, path):
    server.faults[FIRST] = ["stalled"]
    process = FORK.Process(target=archives.download, args=("mnist", path.parent))
    process.start()
    assert server.stalled.wait(60)
    process.kill()
    process.join(60)
    assert len(list(path.parent.glob(".mnist.npz.*.partial"))) == 1
    assert not path.exists()
    check_whole(archives.download("mnist", path.parent))
    check_alone(path)
