import json
import math
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import threading

import pandas as pd
import pytest
import torch

import labutils as lab
from labutils import runs


def test_a_run_is_kept_whole_and_found_again(store, experiment):
    first = lab.run(experiment, progress=False)
    assert first.path == store / experiment.hash(first.metrics["data"])
    kept = {path.name for path in first.path.iterdir()}
    assert kept == {"experiment.yaml", "history.csv", "metrics.json", "model.safetensors"}
    again = lab.run(experiment, on_epoch=lambda history: pytest.fail("trained again"))
    assert again.experiment == experiment
    assert again.history.frame.equals(first.history.frame)
    assert again.history.best_epoch == first.history.best_epoch
    assert again.metrics == first.metrics
    weights, expected = again.model.state_dict(), first.model.state_dict()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert not again.model.training


def test_a_run_records_what_it_measured_and_where(store, experiment, digits):
    finished = lab.run(experiment, progress=False)
    measured = lab.evaluate(finished.model, "test", digits)
    assert finished.metrics["test_top1"] == measured["top1"]
    assert finished.metrics["validation_top1"] == finished.history.frame["validation_accuracy"].max()
    assert finished.metrics["parameters"] == lab.parameter_count(finished.model)
    assert finished.metrics["source"] == "builtin"
    assert finished.metrics["torch"] == torch.__version__
    assert finished.metrics == json.loads((finished.path / "metrics.json").read_text())


def test_a_run_is_measured_over_more_views_where_they_tell_something(store, experiment, digits):
    once = lab.run(experiment, progress=False).metrics
    assert not {"test_flips_top1", "test_views_top1"} & once.keys()
    augmented = lab.run(experiment.override(augment="basic", epochs=1, six_views=True), progress=False)
    for part in ("validation", "test"):
        for name, views in {"flips": 2, "views": 6}.items():
            measured = lab.evaluate(augmented.model, part, digits, views=views)
            assert augmented.metrics[f"{part}_{name}_top1"] == measured["top1"]


@pytest.mark.parametrize(
    ("name", "described", "named"),
    [
        (
            "EPYC",
            "cpu family\t: 25\nmodel\t\t: 17\nmodel name\t: EPYC\n\ncpu family\t: 25\n",
            "EPYC (family 25, model 17)",
        ),
        ("EPYC 9454", "cpu family\t: 25\nmodel\t\t: 17\n", "EPYC 9454"),
        ("Cortex", "Features\t: fp asimd\n", "Cortex"),
        ("Cortex", None, "Cortex"),
    ],
)
def test_a_processor_without_a_number_is_told_by_its_family(monkeypatch, tmp_path, name, described, named):
    processors = tmp_path / "cpuinfo"
    if described is not None:
        processors.write_text(described)
    monkeypatch.setattr(runs, "PROCESSORS", processors)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"cpu_name": name})
    assert runs.processor_name() == named


def test_what_a_killed_writer_left_goes_when_the_run_is_written(store, experiment):
    path = runs.run_path(experiment, runs.load_experiment_data(experiment))
    left, other = store / f".{path.name}.a1b2.partial", store / ".another.a1b2.partial"
    for folder in (left, other):
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(bytes(8))
    lab.run(experiment, progress=False)
    assert not left.exists()
    assert other.exists()  # it may be in the middle of being written


def test_the_store_stays_at_home_wherever_the_data_are(monkeypatch, tmp_path):
    monkeypatch.setenv("LABUTILS_DATA", str(tmp_path / "shared" / "data"))
    monkeypatch.delenv("LABUTILS_RUNS")
    assert (runs.store_root().parent / "pyproject.toml").is_file()
    monkeypatch.setenv("LABUTILS_RUNS", str(tmp_path))
    assert runs.store_root() == tmp_path


def test_force_trains_anew(store, experiment):
    first = lab.run(experiment, progress=False)
    calls = []
    second = lab.run(experiment, force=True, progress=False, on_epoch=lambda history: calls.append(1))
    assert len(calls) == 2
    assert second.path == first.path
    assert [path.name for path in store.iterdir() if not path.name.startswith(".")] == [first.path.name]
    columns = ["train_loss", "validation_loss"]
    assert second.history.frame[columns].equals(first.history.frame[columns])


@pytest.mark.parametrize("damage", [pathlib.Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:20])])
@pytest.mark.parametrize("name", ["experiment.yaml", "history.csv", "metrics.json", "model.safetensors"])
def test_a_run_with_a_damaged_file_is_reported_and_run_again(store, experiment, name, damage):
    other = lab.run(experiment.override(seed=1), progress=False)
    path = lab.run(experiment, progress=False).path
    before = {file: file.read_bytes() for file in other.path.iterdir()}
    damage(path / name)
    with pytest.warns(lab.DamagedRun, match=path.name):
        mended = lab.run(experiment, progress=False)
    assert lab.run(experiment, on_epoch=lambda history: pytest.fail("trained again")).metrics == mended.metrics
    assert before == {file: file.read_bytes() for file in other.path.iterdir()}


def test_a_run_that_fails_leaves_nothing(store, experiment):
    with pytest.raises(lab.Diverged):
        lab.run(experiment.override(lr=1e30, optimizer="sgd"), progress=False)
    assert [path.name for path in store.iterdir()] == [".locks"]


def test_an_interrupted_run_is_given_but_not_kept(store, experiment):
    def stop(history):
        raise KeyboardInterrupt

    finished = lab.run(experiment, progress=False, on_epoch=stop)
    assert finished.history.interrupted
    assert finished.path is None
    assert len(finished.history.frame) == 1
    assert finished.metrics["validation_top1"] == finished.history.best["validation_accuracy"]
    assert math.isnan(finished.metrics["test_top1"])  # of what is not finished the test split is not asked
    assert {path.name for path in store.iterdir()} == {".locks", ".checkpoints"}
    again = lab.run(experiment, progress=False)
    assert again.path.is_dir()
    assert again.history.frame["seconds"][0] == finished.history.frame["seconds"][0]  # gone on with, not begun anew
    assert not any((store / ".checkpoints").iterdir())


def test_a_failed_write_leaves_nothing_and_keeps_what_was_there(store, experiment, monkeypatch):
    first = lab.run(experiment, progress=False)

    def full(*arguments, **options):
        raise OSError("No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_csv", full)
    with pytest.raises(lab.StoreError, match="No space"):
        lab.run(experiment, force=True, progress=False)
    monkeypatch.undo()
    monkeypatch.setenv("LABUTILS_RUNS", str(store))
    assert {path.name for path in store.iterdir()} == {".locks", ".checkpoints", first.path.name}
    assert lab.run(experiment).metrics == first.metrics


def test_two_that_want_the_same_run_train_it_once(store, experiment):
    trained = []
    threads = [
        threading.Thread(target=lab.run, args=(experiment,), kwargs={"progress": False, "on_epoch": trained.append})
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(trained) == experiment.training.epochs


def test_gradients_are_logged_on_request(store, experiment):
    first = lab.run(experiment.override(gradients=True), progress=False)
    assert (first.path / "gradients.csv").is_file()
    again = lab.run(experiment.override(gradients=True))
    assert again.history.probes[["epoch", "name", "kind"]].equals(first.history.probes[["epoch", "name", "kind"]])
    assert again.history.probes["norm"].tolist() == pytest.approx(first.history.probes["norm"].tolist(), rel=1e-12)
    assert first.history.probes["epoch"].unique().tolist() == [1, 2]


def test_initial_weights_come_from_the_training_seed(store, experiment):
    same = [lab.run(experiment, force=True, progress=False).history.frame["train_loss"][0] for _ in range(2)]
    other = lab.run(experiment.override(seed=5), progress=False).history.frame["train_loss"][0]
    assert same[0] == same[1]
    assert other != same[0]


def test_a_store_that_cannot_be_written_is_named_before_training(experiment, monkeypatch):
    monkeypatch.setenv("LABUTILS_RUNS", "/proc/runs")
    with pytest.raises(lab.StoreError, match=r"/proc/runs can't be written .*LABUTILS_RUNS"):
        lab.run(experiment, on_epoch=lambda history: pytest.fail("trained"))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows limits no file's size")
def test_a_full_disk_is_named_before_training(store):
    code = (
        "import resource, labutils as lab\n"
        "experiment = lab.Experiment.load('mlp_mnist', profile='smoke', depth=1, width=4, epochs=1)\n"
        "lab.load_data(**experiment.data)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, 1_000))  # every file is full after a kilobyte\n"
        "lab.run(experiment, on_epoch=lambda history: print('trained'))\n"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "StoreError: the run store" in finished.stderr
    assert "trained" not in finished.stdout
    assert [path.name for path in store.iterdir()] == [".locks"]
    assert not list((store / ".locks").iterdir())


@pytest.fixture
def shared_store(store, experiment):
    """A store that a group of users may write, as a teacher would make it."""
    lab.run(experiment.override(seed=9), progress=False)  # imports what other users may not be able to read
    root = pathlib.Path(tempfile.mkdtemp())
    root.chmod(0o755)
    folder = root / "runs"
    folder.mkdir()
    os.chown(folder, 0, CLASS)
    folder.chmod(0o2775)
    yield folder
    os.seteuid(0)
    os.setegid(0)
    shutil.rmtree(root)


CLASS, STUDENTS = 54321, (54322, 54323)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can be several users")
def test_a_class_shares_a_store(shared_store, experiment, monkeypatch):
    monkeypatch.setenv("LABUTILS_RUNS", str(shared_store))

    def stop(history):
        raise KeyboardInterrupt

    def become(user):
        os.seteuid(0)
        os.setegid(CLASS)
        os.seteuid(user)

    become(STUDENTS[0])
    first = lab.run(experiment, progress=False)
    stopped = lab.run(experiment.override(seed=1), progress=False, on_epoch=stop)
    become(STUDENTS[1])
    assert lab.run(experiment, progress=False, on_epoch=pytest.fail).metrics == first.metrics
    resumed = lab.run(experiment.override(seed=1), progress=False)
    assert resumed.history.rows[0] == pytest.approx(stopped.history.rows[0])
    assert lab.run(experiment.override(seed=2), progress=False).path.is_dir()
    assert resumed.path.stat().st_uid != first.path.stat().st_uid


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become someone else")
def test_what_is_in_a_store_that_can_only_be_read_is_loaded(shared_store, experiment, monkeypatch):
    monkeypatch.setenv("LABUTILS_RUNS", str(shared_store))
    first = lab.run(experiment, progress=False)
    shared_store.chmod(0o755)
    (shared_store / ".locks").chmod(0o755)
    os.seteuid(STUDENTS[0])
    assert lab.run(experiment, progress=False).metrics == first.metrics
    with pytest.raises(lab.StoreError, match=r"LABUTILS_RUNS"):
        lab.run(experiment.override(seed=1), progress=False)
