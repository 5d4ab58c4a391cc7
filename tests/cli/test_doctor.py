import pytest
import torch

from labutils.cli import doctor
from labutils.cli.main import main
from labutils.data import archives


def test_doctor_looks_at_everything(capsys):
    assert main(["doctor"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")]
    subjects = [line.split()[1] for line in lines]
    assert subjects == [
        "Python", "torch", "device", "cores", "bf16", "mnist", "cifar10", "cifar100", "kernel", "widgets", "disk",
        "tracking",
    ]  # fmt: skip
    assert all(line.startswith(("ok ", "warn ")) for line in lines)


def test_the_course_kernel_runs_in_this_environment():
    check = doctor.check_kernel()
    assert check.remedy is None
    assert "Deep-learning labs" in check.found


def test_a_kernel_of_another_environment_is_a_warning(tmp_path, monkeypatch):
    folder = tmp_path / "kernels" / "labutils"
    folder.mkdir(parents=True)
    (folder / "kernel.json").write_text('{"argv": ["/usr/bin/env", "-m"], "display_name": "x", "language": "python"}')
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    assert "make .venv" in doctor.check_kernel().remedy


def test_the_widget_extension_is_found():
    assert doctor.check_widgets().remedy is None


def test_missing_data_come_with_a_remedy(tmp_path, monkeypatch):
    monkeypatch.setenv("LABUTILS_DATA", str(tmp_path))
    monkeypatch.setattr(archives, "addresses", lambda name: ["http://127.0.0.1:9/"])
    check = doctor.check_data("mnist")
    assert "stand-in" in check.found
    assert str(tmp_path) in check.remedy
    monkeypatch.setattr(doctor, "is_reachable", lambda address: True)
    assert doctor.check_data("mnist").remedy == "labutils data mnist"
    (tmp_path / "mnist.npz").write_bytes(b"<html>log in")
    assert "web page" in doctor.check_data("mnist").found


def test_an_archive_that_may_not_be_read_is_a_warning(tmp_path, monkeypatch):
    def refuse(path, name):
        raise PermissionError(f"[Errno 13] Permission denied: {str(path)!r}")

    monkeypatch.setattr(archives, "read_archive", refuse)
    check = doctor.check_data("mnist")
    assert "Permission denied" in check.found
    assert "mnist.npz readable" in check.remedy


@pytest.mark.parametrize("address", ["http://my server/", "nonsense", "http://127.0.0.1:9/"])
def test_an_address_that_cannot_be_asked_is_not_reachable(address):
    assert not doctor.is_reachable(address)


@pytest.mark.parametrize(("free", "warns"), [(50e9, False), (1e9, True)])
def test_a_full_disk_is_a_warning(monkeypatch, free, warns):
    usage = type("Usage", (), {"free": free})
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: usage)
    assert (doctor.check_disk().remedy is not None) == warns


@pytest.mark.parametrize(("unwritable", "warns"), [("data", False), ("runs", True)])
def test_runs_need_a_folder_that_can_be_written_and_data_do_not(monkeypatch, tmp_path, unwritable, warns):
    for name, variable in (("data", "LABUTILS_DATA"), ("runs", "LABUTILS_RUNS")):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / name))
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: path.name != unwritable)
    assert ("LABUTILS_RUNS" in str(doctor.check_disk().remedy)) == warns


def test_more_threads_than_cores_are_a_warning(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1_000)
    assert "OMP_NUM_THREADS" in doctor.check_threads().remedy


def test_a_remedy_is_printed_under_its_warning():
    assert str(doctor.Check("disk", "full", "empty it")) == f"warn  {'disk':<14} full\n{'':21}remedy: empty it"
