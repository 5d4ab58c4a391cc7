"""Downloads are tested against a server on this machine, with a tiny data set in MNIST's own file format."""

import gzip
import hashlib
import http.server
import multiprocessing
import struct
import threading

import numpy as np
import pytest
from torchvision import datasets

import labutils as lab
from labutils import archives


def idx(array: np.ndarray) -> bytes:
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return gzip.compress(header + array.tobytes(), mtime=0)


RNG = np.random.default_rng(0)
ARRAYS = {
    "train-images-idx3-ubyte.gz": RNG.integers(0, 256, (60, 28, 28), dtype=np.uint8),
    "train-labels-idx1-ubyte.gz": np.arange(60, dtype=np.uint8) % 10,
    "t10k-images-idx3-ubyte.gz": RNG.integers(0, 256, (20, 28, 28), dtype=np.uint8),
    "t10k-labels-idx1-ubyte.gz": np.arange(20, dtype=np.uint8) % 10,
}
FILES = {name: idx(array) for name, array in ARRAYS.items()}
FIRST = "train-images-idx3-ubyte.gz"
LOGIN_PAGE = b"<!DOCTYPE html><html>Please log in to this network</html>"


class Server(http.server.ThreadingHTTPServer):
    """Serves FILES; `faults` holds, by file, what goes wrong at the first requests for it."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults: dict[str, list[str]] = {}
        self.requests: list[str] = []
        self.stalled, self.ended = threading.Event(), threading.Event()
        self.base = f"http://127.0.0.1:{self.server_port}/"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        name = self.path.strip("/")
        self.server.requests.append(name)
        body = FILES[name]
        fault = self.server.faults[name].pop(0) if self.server.faults.get(name) else None
        if fault == "missing":
            self.send_error(404)
            return
        if fault == "web page":
            body = LOGIN_PAGE
        if fault == "corrupt":
            body = body[:100] + bytes([body[100] ^ 1]) + body[101:]
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


@pytest.fixture
def server(monkeypatch):
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        resources = [(name, hashlib.md5(body).hexdigest()) for name, body in FILES.items()]
        monkeypatch.setattr(datasets.MNIST, "resources", resources)
        monkeypatch.setattr(archives, "addresses", lambda name: [server.base])
        yield server
        server.ended.set()
        server.shutdown()


def check_whole(arrays):
    for key, array in zip(archives.ARRAYS, ARRAYS.values(), strict=True):
        assert np.array_equal(arrays[key], array)


def test_a_download_is_kept_as_the_archive(server, tmp_path):
    data = lab.load_data("mnist", root=tmp_path, validation=0)
    assert (data.source, data.title) == ("download", "MNIST")
    assert len(server.requests) == 4
    again = lab.load_data("mnist", root=tmp_path, validation=0)
    assert (again.source, again.title) == ("archive", "MNIST")
    assert len(server.requests) == 4
    assert np.array_equal(again.train.images, data.train.images)
    assert {path.name for path in tmp_path.iterdir()} - {"mnist.lock"} == {"mnist.npz"}


@pytest.mark.parametrize(
    ("fault", "named"), [("truncated", "truncated"), ("corrupt", "corrupt"), ("web page", "a web page instead of data")]
)
def test_a_damaged_file_is_named_and_fetched_again(server, tmp_path, capsys, fault, named):
    server.faults[FIRST] = [fault]
    check_whole(archives.download("mnist", tmp_path))
    assert server.requests.count(FIRST) == 2
    assert named in capsys.readouterr().err


def test_a_mirror_that_fails_gives_way_to_the_next(server, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "addresses", lambda name: ["http://127.0.0.1:9/", server.base])
    check_whole(archives.download("mnist", tmp_path))


def test_when_every_mirror_fails_each_is_named_and_nothing_is_left(server, tmp_path):
    server.faults[FIRST] = ["web page", "corrupt"]
    with pytest.raises(lab.DownloadError) as caught:
        archives.download("mnist", tmp_path)
    assert FIRST in str(caught.value)
    assert "a web page instead of data" in str(caught.value)
    assert "corrupt" in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} - {"mnist.lock"} == set()
    server.faults[FIRST] = ["missing"]
    with pytest.raises(lab.DownloadError, match="Not Found"):
        lab.load_data("mnist", source="download", root=tmp_path)


def test_an_own_mirror_comes_first(monkeypatch):
    monkeypatch.setenv("LABUTILS_MIRROR", "http://files.example/data")
    assert archives.addresses("cifar10")[0] == "http://files.example/data/"
    assert any("toronto" in address for address in archives.addresses("cifar10"))


def download_in_process(base, resources, root, barrier=None):
    datasets.MNIST.resources = resources
    archives.addresses = lambda name: [base]
    if barrier is not None:
        barrier.wait()
    archives.download("mnist", root)


def test_two_processes_get_one_good_archive(server, tmp_path):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    arguments = (server.base, datasets.MNIST.resources, tmp_path, barrier)
    processes = [context.Process(target=download_in_process, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(server.requests) == 4
    check_whole(archives.read_archive(tmp_path / "mnist.npz", "mnist"))


def test_what_a_killed_download_left_goes_with_the_next(server, tmp_path):
    server.faults[FIRST] = ["stalled"]
    arguments = (server.base, datasets.MNIST.resources, tmp_path)
    process = multiprocessing.get_context("fork").Process(target=download_in_process, args=arguments)
    process.start()
    assert server.stalled.wait(60)
    process.kill()
    process.join(60)
    assert len(list(tmp_path.glob(".mnist.npz.*.partial"))) == 1
    check_whole(archives.download("mnist", tmp_path))
    assert {path.name for path in tmp_path.iterdir()} - {"mnist.lock"} == {"mnist.npz"}


def write_archive(path, **changes):
    arrays = dict(zip(archives.ARRAYS, ARRAYS.values(), strict=True)) | changes
    np.savez(path, **arrays)
    return path


def damage_truncated(path):
    path.write_bytes(path.read_bytes()[:-500])


def damage_flipped(path):
    content = bytearray(path.read_bytes())
    content[5_000] ^= 1
    path.write_bytes(content)


def damage_page(path):
    path.write_bytes(LOGIN_PAGE)


def damage_empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [damage_truncated, damage_flipped, damage_page, damage_empty])
def test_a_damaged_archive_is_named_and_fetched_again(server, tmp_path, capsys, damage):
    path = write_archive(tmp_path / "mnist.npz")
    damage(path)
    with pytest.raises(lab.ArchiveError, match=r"mnist\.npz: damaged archive"):
        lab.load_data("mnist", source="archive", root=tmp_path)
    data = lab.load_data("mnist", root=tmp_path)
    assert data.source == "download"
    assert "damaged archive" in capsys.readouterr().err
    check_whole(archives.read_archive(path, "mnist"))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"x_train": np.zeros((60, 14, 14), np.uint8)}, "x_train"),
        ({"x_test": np.zeros((20, 28, 28), np.float32)}, "float32"),
        ({"y_train": np.zeros(59, np.uint8)}, "y_train"),
        ({"y_test": np.full(20, 10, np.uint8)}, "outside 0 to 9"),
    ],
)
def test_an_archive_of_something_else_is_refused(tmp_path, changes, named):
    write_archive(tmp_path / "mnist.npz", **changes)
    with pytest.raises(lab.ArchiveError, match=named):
        lab.load_data("mnist", source="archive", root=tmp_path)


def test_a_missing_archive_is_named(tmp_path):
    with pytest.raises(lab.ArchiveError, match="no such archive"):
        lab.load_data("cifar100", source="archive", root=tmp_path)


def test_unknown_images_are_titled_by_their_digest(tmp_path):
    write_archive(tmp_path / "mnist.npz")
    title = lab.load_data("mnist", source="archive", root=tmp_path).title
    assert title.startswith("mnist.npz (")
    write_archive(tmp_path / "mnist.npz", x_test=ARRAYS["t10k-images-idx3-ubyte.gz"][::-1])
    assert lab.load_data("mnist", source="archive", root=tmp_path).title != title
