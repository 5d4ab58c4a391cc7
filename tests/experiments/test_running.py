import json
import math
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import threading
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import labutils as lab
from labutils.experiments import provenance, running
from labutils.experiments import store as store_module
from labutils.files import file_digest
from labutils.training.callbacks import Callback
from labutils.training.stop_button import stoppable


class Count(Callback):
    """Counts the epochs that are trained."""

    def __init__(self):
        self.epochs = 0

    def after_epoch(self, state):
        self.epochs += 1


class Forbidden(Callback):
    """Fails where anything is trained."""

    def before_training(self, state):
        pytest.fail("trained again")


class InterruptAfter(Callback):
    """Interrupts in the first step after so many epochs, as Ctrl-C would."""

    def __init__(self, epochs=1):
        self.epochs = epochs

    def after_step(self, state):
        if len(state.history.rows) == self.epochs:
            raise KeyboardInterrupt


def path_of(experiment):
    return store_module.run_path(running.identify(experiment, running.load_experiment_data(experiment)))


def interrupt(experiment):
    with pytest.raises(lab.Interrupted) as caught:
        lab.run(experiment, progress=False, callbacks=[InterruptAfter()])
    return caught.value.history


def test_a_run_is_kept_whole_and_found_again(store, experiment):
    first = lab.run(experiment, progress=False)
    assert first.path == path_of(experiment)
    kept = {path.name for path in first.path.iterdir()}
    assert kept == {"experiment.yaml", "history.csv", "metrics.json", "model.safetensors", "SHA256SUMS"}
    again = lab.run(experiment, callbacks=[Forbidden()])
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
    assert finished.metrics["parameters"] == lab.describe(finished.model)["parameters"]
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
    monkeypatch.setattr(provenance, "PROCESSORS", processors)
    monkeypatch.setattr(provenance, "cpu_capabilities", lambda: {"cpu_name": name})
    assert provenance.processor_name() == named


def test_what_a_killed_writer_left_goes_when_the_run_is_written(store, experiment):
    path = path_of(experiment)
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
    assert (store_module.store_root().parent / "pyproject.toml").is_file()
    monkeypatch.setenv("LABUTILS_RUNS", str(tmp_path))
    assert store_module.store_root() == tmp_path


def test_force_trains_anew(store, experiment):
    first = lab.run(experiment, progress=False)
    count = Count()
    second = lab.run(experiment, force=True, progress=False, callbacks=[count])
    assert count.epochs == 2
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
    assert lab.run(experiment, callbacks=[Forbidden()]).metrics == mended.metrics
    assert before == {file: file.read_bytes() for file in other.path.iterdir()}


def test_a_run_that_fails_leaves_nothing(store, experiment):
    with pytest.raises(lab.Diverged):
        lab.run(experiment.override(lr=1e30, optimizer="sgd"), progress=False)
    assert [path.name for path in store.iterdir()] == [".locks"]


def test_an_interrupt_goes_on_and_the_run_from_where_it_was(store, experiment):
    history = interrupt(experiment)
    assert history.interrupted
    assert len(history.rows) == 1
    assert {path.name for path in store.iterdir()} == {".locks", ".checkpoints"}
    again = lab.run(experiment, progress=False)
    assert again.path.is_dir()
    assert again.history.frame["seconds"][0] == history.frame["seconds"][0]  # gone on with, not begun anew
    assert not any((store / ".checkpoints").iterdir())


def test_a_stopped_run_is_given_but_not_kept_and_not_averaged(store, experiment):
    requested = threading.Event()

    class Stop(Callback):
        def after_epoch(self, state):
            requested.set()

    with stoppable(requested):
        stopped = lab.run(experiment, progress=False, callbacks=[Stop()])
    assert not stopped.finished
    assert stopped.path is None
    assert len(stopped.history.frame) == 1
    assert stopped.metrics["validation_top1"] == stopped.history.best["validation_accuracy"]
    assert math.isnan(stopped.metrics["test_top1"])  # the test split is for what is finished
    assert not [path for path in store.iterdir() if not path.name.startswith(".")]
    with pytest.raises(lab.SettingError, match="finished runs"):
        lab.percent(pd.Series([0.9, stopped.metrics["test_top1"]]))


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
    count = Count()
    threads = [
        threading.Thread(target=lab.run, args=(experiment,), kwargs={"progress": False, "callbacks": [count]})
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert count.epochs == experiment.training.epochs


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
        lab.run(experiment, callbacks=[Forbidden()])


@pytest.mark.skipif(sys.platform == "win32", reason="Windows limits no file's size")
def test_a_full_disk_is_named_before_training(store):
    code = (
        "import resource, labutils as lab\n"
        "experiment = lab.Experiment.load('mlp_mnist', profile='smoke', depth=1, width=4, epochs=1)\n"
        "lab.load_data(**experiment.data)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, 1_000))  # every file is full after a kilobyte\n"
        "class Say(lab.training.Callback):\n"
        "    def after_epoch(self, state): print('trained')\n"
        "lab.run(experiment, callbacks=[Say()])\n"
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
class Unwritable(Callback):
    def after_epoch(self, state):
        pathlib.Path("/nowhere/figure.png").write_bytes(b"")


def test_a_callbacks_own_file_is_not_taken_for_the_stores(store, experiment):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        lab.run(experiment, progress=False, callbacks=[Unwritable()])


def test_a_class_shares_a_store(shared_store, experiment, monkeypatch):
    monkeypatch.setenv("LABUTILS_RUNS", str(shared_store))

    def become(user):
        os.seteuid(0)
        os.setegid(CLASS)
        os.seteuid(user)

    become(STUDENTS[0])
    first = lab.run(experiment, progress=False)
    stopped = interrupt(experiment.override(seed=1))
    become(STUDENTS[1])
    assert lab.run(experiment, progress=False, callbacks=[Forbidden()]).metrics == first.metrics
    resumed = lab.run(experiment.override(seed=1), progress=False)
    assert resumed.history.rows[0] == pytest.approx(stopped.rows[0])
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


def test_a_store_decides_the_modes_of_its_files_whatever_the_umask_says(shared_store, experiment, monkeypatch):
    monkeypatch.setenv("LABUTILS_RUNS", str(shared_store))
    os.setegid(CLASS)
    os.seteuid(STUDENTS[0])
    before = os.umask(0o077)
    try:
        first = lab.run(experiment, progress=False)
        interrupt(experiment.override(seed=1))
    finally:
        os.umask(before)
    assert first.path.stat().st_mode & 0o7777 == 0o2775
    assert all(path.stat().st_mode & 0o777 == 0o664 for path in first.path.iterdir())
    os.seteuid(0)
    os.seteuid(STUDENTS[1])
    assert lab.run(experiment, callbacks=[Forbidden()]).metrics == first.metrics
    assert len(lab.run(experiment.override(seed=1), progress=False).history.rows) == 2


def test_runs_of_configs_that_differ_in_nothing_else_are_named_as_asked(store, experiment):
    lab.run(experiment, progress=False)
    other = replace(experiment, name="another", profile="laptop")
    found = lab.run(other, callbacks=[Forbidden()])
    assert found.experiment == other
    assert (found.metrics["experiment"], found.metrics["profile"]) == ("another", "laptop")


def test_a_model_is_loaded_once(store, experiment):
    trained = lab.run(experiment, progress=False)
    assert trained.model is trained.model
    loaded = lab.run(experiment)
    assert loaded.model is loaded.model


def test_no_run_moves_the_global_random_state(store, experiment):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    for _ in range(2):  # trained, then loaded
        lab.run(experiment, progress=False)
        assert torch.equal(torch.get_rng_state(), before)


def test_an_experiment_may_be_named(store, monkeypatch):
    monkeypatch.setenv("LABUTILS_PROFILE", "smoke")
    assert lab.run("mlp_mnist", progress=False).experiment == lab.Experiment.load("mlp_mnist")
    with pytest.raises(lab.SettingError, match="an Experiment, or the name of a config"):
        lab.run(3)


def archive(folder, labels):
    rng = np.random.default_rng(0)
    arrays = {f"x_{part}": rng.integers(0, 256, (60, 28, 28), np.uint8) for part in ("train", "test")}
    np.savez(folder / "mnist.npz", **arrays, y_train=labels, y_test=labels)


def test_the_labels_are_part_of_what_a_run_is(store, tmp_path, monkeypatch):
    """And an archive that is replaced while the process lives."""
    monkeypatch.setenv("LABUTILS_DATA", str(tmp_path))
    labels = (np.arange(60) % 10).astype(np.uint8)
    experiment = lab.Experiment.load("mlp_mnist", profile="laptop", depth=1, width=4, epochs=1)
    archive(tmp_path, labels)
    first = lab.run(experiment, progress=False)
    archive(tmp_path, 9 - labels)
    os.utime(tmp_path / "mnist.npz", ns=(1, 1))  # as a clock that is too coarse would have it
    assert lab.run(experiment, progress=False).path != first.path
    archive(tmp_path, labels)
    assert lab.run(experiment, callbacks=[Forbidden()]).path == first.path


class Own(torch.nn.Module):
    """A student's class, which takes some of the experiment's settings and what the data decide."""

    def __init__(self, width, in_features, classes):
        super().__init__()
        self.hidden = torch.nn.Linear(in_features, width)
        self.head = torch.nn.Linear(width, classes)

    def features(self, images):
        return self.hidden(images.flatten(1)).relu()

    def forward(self, images):
        return self.head(self.features(images))


class OwnTanh(Own):
    def features(self, images):
        return self.hidden(images.flatten(1)).tanh()


class OwnInitialised(Own):
    def __init__(self, width, in_features, classes):
        super().__init__(width, in_features, classes)
        torch.nn.init.zeros_(self.hidden.bias)


def test_a_class_of_ones_own_is_trained_and_kept_by_what_it_computes(store, experiment):
    ours = lab.run(experiment, progress=False)
    own = lab.run(experiment, model=Own, progress=False)
    assert isinstance(own.model, Own)
    assert own.model.hidden.out_features == experiment.model["width"]
    assert own.caption.endswith(f"; a model of one's own, made with width {experiment.model['width']}")
    assert "own" not in ours.caption
    again = lab.run(experiment, model=Own, callbacks=[Forbidden()])
    assert isinstance(again.model, Own)
    assert again.caption == own.caption
    assert torch.equal(again.model.head.weight, own.model.head.weight)
    renamed = type("Renamed", (Own,), {})
    assert lab.run(experiment, model=renamed, callbacks=[Forbidden()]).path == own.path
    others = {lab.run(experiment, model=other, progress=False).path for other in (OwnTanh, OwnInitialised)}
    assert len(others | {own.path, ours.path}) == 4


def test_a_changed_net_of_the_course_is_a_class_of_ones_own(store, experiment):
    """Two that differ in an attribute alone, and so have equal weights at first."""

    def built(scale):
        def build(depth, width, in_features, classes):
            net = lab.MLP(depth, width, residual=True, in_features=in_features, classes=classes)
            net.layers[1].residual_scale = scale
            return net

        return lab.run(experiment, model=build, progress=False)

    assert built(1.0).path != built(0.1).path


def test_what_is_no_class_of_a_network_is_named(store, experiment):
    for wrong in (3, lambda: 3, torch.nn.Flatten, lab.MLP(2, 4)):
        with pytest.raises(lab.SettingError, match="model"):
            lab.run(experiment, model=wrong, progress=False)


def test_a_run_that_another_process_trains_is_told(store, experiment):
    with store_module.lock(path_of(experiment)), pytest.raises(running.Busy):
        thread_safe_run(experiment)


def thread_safe_run(experiment):
    """In another thread, because a lock may be taken twice by one."""
    failures = []

    def work():
        try:
            lab.run(experiment, progress=False, wait=False)
        except running.Busy as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    raise failures[0]


def test_the_sums_are_those_that_sha256sum_checks(store, experiment):
    path = lab.run(experiment, progress=False).path
    lines = (path / "SHA256SUMS").read_text().splitlines()
    assert {line.split("  ")[1] for line in lines} == {file.name for file in path.iterdir()} - {"SHA256SUMS"}
    assert all(file_digest(path / name) == digest for digest, name in (line.split("  ") for line in lines))


# Runs that come with the course


@pytest.fixture
def shipped(store, experiment, tmp_path, monkeypatch):
    """An experiment whose run comes with the course, trained elsewhere and on other data than are here."""
    monkeypatch.setattr(store_module, "shipped_root", lambda: tmp_path / "shipped")
    monkeypatch.setenv("LABUTILS_DATA", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    asked = experiment.override(source="auto")
    write_archive(tmp_path / "data", seed=1)
    path = running.ship_run(asked)
    run = lab.run(asked)
    assert run.model is not None  # read before its folder goes
    shutil.rmtree(store)
    write_archive(tmp_path / "data", seed=2)
    return asked, path, run


def write_archive(folder, seed):
    draw = np.random.default_rng(seed)
    parts = {
        f"{what}_{part}": draw.integers(0, 10 if what == "y" else 256, (count, 28, 28) if what == "x" else count)
        for part, count in (("train", 300), ("test", 100))
        for what in "xy"
    }
    images = {name: array.astype(np.uint8 if name[0] == "x" else np.int64) for name, array in parts.items()}
    np.savez(folder / "mnist.npz", **images)


def test_a_run_of_the_course_is_loaded_whatever_data_are_here(shipped, monkeypatch):
    asked, path, run = shipped
    monkeypatch.setattr(running, "train", lambda *_, **__: pytest.fail("trained"))
    loaded = lab.run(asked)
    assert loaded.path == path
    kept = {name: value for name, value in loaded.metrics.items() if name != "identity"}
    assert kept == {name: value for name, value in run.metrics.items() if name != "identity"}
    assert run.metrics["data"] in loaded.caption
    weights = zip(loaded.model.state_dict().values(), run.model.state_dict().values(), strict=True)
    assert all(torch.allclose(half, whole, atol=1e-3) and half.dtype == torch.float32 for half, whole in weights)
    assert running.kept_run(asked) is None, "a sweep trains on the data that are here"


@pytest.mark.parametrize("changes", [{"seed": 1}, {"source": "builtin"}])
def test_it_is_taken_for_no_other_experiment(shipped, changes):
    asked, path, _ = shipped
    assert lab.run(asked.override(**changes), progress=False).path != path


def test_force_trains_on_the_data_that_are_here_and_that_run_comes_first_from_then_on(shipped, store):
    asked, _, run = shipped
    own = lab.run(asked, force=True, progress=False)
    assert own.path.parent == store
    assert own.metrics["test_loss"] != run.metrics["test_loss"]
    assert lab.run(asked).path == own.path


def test_a_damaged_one_stays_and_is_trained_anew(shipped, store):
    asked, path, _ = shipped
    (path / "history.csv").write_text("epoch\n1\n")
    with pytest.warns(store_module.DamagedRun, match="it stays where it is"):
        assert lab.run(asked, progress=False).path.parent == store
    assert path.is_dir()


def test_a_class_of_ones_own_is_never_taken_for_it(shipped):
    asked, path, _ = shipped

    class Mine(lab.MLP):
        pass

    assert lab.run(asked, model=Mine, progress=False).path != path


def test_weights_beyond_half_precision_are_shipped_as_they_are(shipped, tmp_path):
    _, _, run = shipped
    with torch.no_grad():
        run.model.head.weight[0, 0] = 1e6  # half precision ends at 65,504
    large = replace(run, path=tmp_path / "shipped" / "large", load_model=lambda: run.model)
    store_module.write_run(large, half=True)
    kept = load_file(tmp_path / "shipped" / "large" / "model.safetensors")
    assert kept["head.weight"][0, 0] == 1e6
    assert kept["layers.0.linear.weight"].dtype == torch.float16


def test_a_sweep_has_all_its_runs_on_the_data_that_are_here(shipped, store):
    asked, path, _ = shipped
    table = lab.sweep([asked], jobs=1, progress=False)
    own = running.kept_run(asked).path
    assert table["run"].item() == own.name
    assert own.parent == store != path.parent
