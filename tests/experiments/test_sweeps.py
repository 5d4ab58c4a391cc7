"""Sweeps in one process and in several, which are killed, interrupted, and meet others at the same store."""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
import types

import joblib
import psutil
import pytest
import torch

import labutils as lab
from labutils.experiments import running, store, sweeps
from labutils.experiments.cluster import WorkersDied
from labutils.experiments.results import failed_row

LEFT_BEHIND = {".locks", ".checkpoints"}  # beside the runs
WAIT_S = 120  # for what must happen


def kept(folder):
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


def hidden(folder):
    return {path.name for path in folder.iterdir() if path.name.startswith(".")}


def grid(**settings):
    axes = settings.pop("axes", {"seed": [0, 1]})
    base = lab.Experiment.load("mlp_mnist", profile="smoke", **{"depth": 1, "width": 8, "epochs": 1, **settings})
    combinations = itertools.product(*axes.values())
    return [base.override(**dict(zip(axes, values, strict=True))) for values in combinations]


def name_of(experiment):
    return store.run_path(running.identify(experiment, running.load_experiment_data(experiment))).name


def wait_for(condition):
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def births(folder):
    """When each run was written."""
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("[!.]*/metrics.json")}


def workers_of(pid):
    return [child for child in psutil.Process(pid).children() if "LokyProcess" in " ".join(child.cmdline())]


@contextlib.contextmanager
def nothing_trained_twice(folder):
    """Look out for runs that are written a second time."""
    seen, twice, over = {}, set(), threading.Event()

    def watch():
        while not over.wait(0.02):
            twice.update(name for name, birth in births(folder).items() if seen.setdefault(name, birth) != birth)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
    assert not twice
    assert seen.items() <= births(folder).items()


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A small sweep in worker processes, two of whose runs fail."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABUTILS_RUNS", str(tmp_path_factory.mktemp("swept")))
        experiments = grid(axes={"lr": [1e-3, 1e30], "seed": [0, 1]}, optimizer="sgd")
        yield experiments, lab.sweep(experiments, jobs=2, progress=False), store.store_root()


def test_a_sweep_gives_a_row_a_run_in_order(swept):
    experiments, table, folder = swept
    assert table["lr"].tolist() == [experiment.training.lr for experiment in experiments]
    assert table["seed"].tolist() == [0, 1, 0, 1]
    assert table["scheduler"].tolist() == ["none"] * 4
    assert table["run"].tolist()[:2] == [name_of(experiment) for experiment in experiments[:2]]
    assert table["threads"].dropna().unique().tolist() == [1]
    assert hidden(folder) == LEFT_BEHIND


def test_a_run_that_fails_in_a_sweep_is_reported_and_stops_nothing(swept):
    _, table, folder = swept
    assert table["error"].notna().tolist() == [False, False, True, True]
    assert table["error"][2].startswith("Diverged: the training loss became")
    assert kept(folder) == set(table["run"].dropna())


def test_a_sweep_goes_on_where_it_was(swept, monkeypatch):
    experiments, table, folder = swept
    monkeypatch.setenv("LABUTILS_RUNS", str(folder))
    monkeypatch.setattr(sweeps, "run", lambda experiment, **options: pytest.fail("it is in the store"))
    again = lab.sweep(experiments[:2], jobs=1, progress=False)
    assert again["test_top1"].tolist() == table["test_top1"][:2].tolist()


def test_a_worker_that_is_killed_costs_no_run(store):
    experiments = grid(axes={"seed": [0, 1, 2]}, depth=4, width=16, epochs=60)

    def kill_one():
        """Kill a worker once the first epoch is over."""
        wait_for(lambda: list(store.glob(".checkpoints/*.safetensors")))
        workers_of(os.getpid())[0].kill()

    killer = threading.Thread(target=kill_one)
    killer.start()
    with pytest.warns(sweeps.SweepWarning, match="killed"), nothing_trained_twice(store):
        table = lab.sweep(experiments, jobs=2, progress=False)
    killer.join()
    assert table["run"].tolist() == [name_of(experiment) for experiment in experiments]
    assert "error" not in table


def test_in_one_process_a_sweep_gives_what_single_runs_give(store, monkeypatch, one_thread):
    experiments = grid()
    table = lab.sweep(experiments, jobs=1, progress=False)
    monkeypatch.setenv("LABUTILS_RUNS", str(store / "alone"))
    alone = [lab.run(experiment, progress=False).metrics for experiment in experiments]
    for figure in ("validation_loss", "test_loss", "test_top1"):
        assert table[figure].tolist() == [metrics[figure] for metrics in alone]


def test_an_experiment_given_twice_is_run_once(store):
    (experiment,) = grid(axes={"seed": [3]})
    table = lab.sweep([experiment, experiment.override(wandb="disabled")], jobs=1, progress=False)
    assert table["run"].nunique() == len(kept(store)) == 1
    assert len(table) == 2


def test_the_longest_come_first_and_each_data_set_is_loaded_once(store, monkeypatch):
    trained, loaded = [], []

    def fails(experiment, **options):
        trained.append((experiment.model["width"], experiment.training.epochs))
        raise ArithmeticError("of no account here")

    load = running.load_data
    monkeypatch.setattr(sweeps, "run", fails)
    monkeypatch.setattr(running, "load_data", lambda **settings: loaded.append(settings["limit"]) or load(**settings))
    running.cached_data.cache_clear()
    axes = {"width": [8, 16], "epochs": [1, 3], "limit": [101, 102, 103]}
    lab.sweep(grid(axes=axes), jobs=1, progress=False)
    assert trained == [size for size in [(16, 3), (8, 3), (16, 1), (8, 1)] for _ in axes["limit"]]
    assert loaded == [101, 102, 103]


def test_never_more_workers_than_cores(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert sweeps.local_jobs(None) == sweeps.local_jobs(10_000) == joblib.cpu_count()
    assert sweeps.local_jobs(1) == 1
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert sweeps.local_jobs(None) == sweeps.local_jobs(8) == 1  # the Apple GPU


def test_workers_take_a_gpu_each(store, monkeypatch):
    taken = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: types.SimpleNamespace(uuid=f"id{index}"))
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    assert (sweeps.local_jobs(None), sweeps.local_jobs(1), sweeps.local_jobs(8)) == (2, 1, 2)
    claim = sweeps.claim_gpu.__wrapped__  # without the cache, as another process calls it
    first, second = claim(), claim()
    assert taken == [0, 1]
    assert first.is_locked
    monkeypatch.setattr(sweeps.time, "sleep", lambda seconds: second.release())  # its holder ends
    third = claim()
    assert taken == [0, 1, 1]
    first.release()
    third.release()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"experiments": []}, "experiments: "),
        ({"experiments": "mlp_mnist"}, "experiments: 'mlp_mnist'"),
        ({"experiments": ["mlp_mnist"]}, "experiments: "),
        ({"jobs": 0}, "jobs: 0"),
        ({"jobs": True}, "jobs: True"),
    ],
)
def test_wrong_sweeps_are_named(experiment, arguments, word):
    with pytest.raises(lab.SettingError, match=word):
        lab.sweep(**{"experiments": [experiment]} | arguments)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_store_that_cannot_be_written_ends_a_sweep(monkeypatch, jobs):
    monkeypatch.setenv("LABUTILS_RUNS", "/proc/runs")
    with pytest.raises(lab.StoreError, match="/proc/runs"):
        lab.sweep(grid(), jobs=jobs, progress=False)


def test_a_store_that_can_only_be_read_serves_what_it_has(store, monkeypatch):
    experiments = grid()
    table = lab.sweep(experiments, jobs=1, progress=False)

    def refuse(path):
        raise lab.StoreError("it can't be written")

    monkeypatch.setattr(running.store, "lock", refuse)
    assert lab.sweep(experiments, jobs=1, progress=False).equals(table)
    with pytest.raises(lab.StoreError, match="can't be written"):
        lab.sweep([*experiments, *grid(axes={"seed": [2]})], jobs=1, progress=False)


def test_a_store_that_fills_up_ends_a_sweep_which_goes_on_once_there_is_room(store):
    resource = pytest.importorskip("resource", reason="Windows has no limits of this kind")
    small, large = grid(axes={"width": [8, 64]})
    lab.sweep([small], jobs=1, progress=False)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # bytes: too few for the weights
    try:
        with pytest.raises(lab.StoreError, match="can't be written"):
            lab.sweep([small, large], jobs=1, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert kept(store) == {name_of(small)}
    assert lab.sweep([small, large], jobs=1, progress=False)["run"].tolist() == [name_of(small), name_of(large)]
    assert hidden(store) <= LEFT_BEHIND


def test_a_run_that_another_process_trains_comes_last(store, monkeypatch):
    first, second = grid(axes={"seed": [0, 1]})
    held, waits = threading.Event(), []
    run = sweeps.run
    monkeypatch.setattr(sweeps, "run", lambda one, **options: waits.append(options["wait"]) or run(one, **options))

    def train_elsewhere():
        with running.store.lock(store / name_of(first)):
            held.set()
            wait_for(lambda: name_of(second) in births(store))

    other = threading.Thread(target=train_elsewhere)
    other.start()
    held.wait(WAIT_S)
    table = lab.sweep([first, second], jobs=1, progress=False)
    other.join()
    assert table["run"].tolist() == [name_of(first), name_of(second)]
    assert waits == [False, False, True]
    assert births(store)[name_of(first)] > births(store)[name_of(second)]


SWEEP = """
import sys, labutils as lab
name, jobs, settings = sys.argv[1], int(sys.argv[2]), eval(sys.argv[3])
experiments = lab.grid(name, axes={"seed": list(range(6))}, profile="smoke", **settings)
try:
    table = lab.sweep(experiments, jobs=jobs, progress=False)
except KeyboardInterrupt:
    sys.exit(130)
print(table["run"].notna().sum(), "error" in table)
"""


def start_sweep(jobs, name="mlp_mnist", **settings):
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", SWEEP, name, str(jobs), repr(settings)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
        # A shell script's background jobs ignore Ctrl-C, and their children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


@pytest.mark.slow
def test_a_killed_sweeps_workers_end_their_runs_and_two_sweeps_share_the_rest(store):
    settings = {"depth": 4, "width": 16, "epochs": 60, "dropout": 0.1}
    experiments = lab.grid("mlp_mnist", axes={"seed": list(range(6))}, profile="smoke", **settings)
    killed = start_sweep(2, **settings)
    try:
        wait_for(lambda: len(births(store)) >= 1)
        orphans = workers_of(killed.pid)
        assert len(orphans) == 2
        killed.kill()
        killed.wait()
        with nothing_trained_twice(store):
            other = start_sweep(1, **settings)
            table = lab.sweep(experiments, jobs=1, progress=False)
            assert other.communicate()[0].split() == ["6", "False"]
        assert table["run"].tolist() == [name_of(experiment) for experiment in experiments]
        assert hidden(store) == LEFT_BEHIND
    finally:
        for orphan in orphans:  # idle by now; it would end by itself in a few minutes
            with contextlib.suppress(psutil.NoSuchProcess):
                orphan.kill()


def test_runs_whose_workers_always_die_are_given_up():
    passes = []

    def work(tasks):
        passes.append([name for name, _, _ in tasks])
        if len(passes) == 2:
            yield "a", {"run": "a"}
        raise WorkersDied("killed")

    experiments = dict(zip("abc", grid(axes={"seed": [0, 1, 2]}), strict=True))
    with pytest.warns(sweeps.SweepWarning, match="killed"):
        rows = dict(sweeps.train_all(dict(experiments), work))
    assert passes == [["a", "b", "c"], ["a", "b", "c"], ["b", "c"], ["b", "c"], ["b", "c"]]
    assert rows["a"] == {"run": "a"}
    assert rows["b"] == failed_row(experiments["b"], WorkersDied("killed"))
    assert rows["c"]["error"] == "WorkersDied: killed"


def test_an_interrupt_becomes_no_row(store, monkeypatch):
    def interrupted(experiment, **options):
        raise lab.Interrupted(lab.History())

    monkeypatch.setattr(sweeps, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        lab.sweep(grid(), jobs=1, progress=False)
    with pytest.raises(KeyboardInterrupt) as caught:
        sweeps.attempt_in_worker({}, "name", grid()[0], False)
    assert type(caught.value) is KeyboardInterrupt  # one that can be sent to the sweep's process


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_ctrl_c_ends_a_sweep_of_which_the_whole_epochs_are_kept(store, jobs):
    interrupted = start_sweep(jobs, "cnn_depth", epochs=1000, blocks=[1, 1, 1, 1], limit=200)
    try:
        wait_for(lambda: len(list(store.glob(".checkpoints/*.safetensors"))) >= jobs)
        workers = workers_of(interrupted.pid)
        os.killpg(interrupted.pid, signal.SIGINT)  # as a terminal does
        _, errors = interrupted.communicate(timeout=WAIT_S)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(interrupted.pid, signal.SIGKILL)
    assert interrupted.returncode == 130
    print(errors)
    assert len(workers) == (0 if jobs == 1 else jobs)
    assert not any(worker.is_running() for worker in workers)
    assert kept(store) == set()
    assert hidden(store) == LEFT_BEHIND
    assert len(list(store.glob(".checkpoints/*.safetensors"))) == jobs


def test_the_time_left_is_told_from_the_parameters_and_epochs_to_come(store, monkeypatch):
    bars, progress_bar = [], sweeps.progress_bar

    def watched(total, **options):
        bars.append(progress_bar(total, **options))
        monkeypatch.setattr(bars[-1], "update", lambda cost: shares.append(cost / total))
        return bars[-1]

    shares = []
    monkeypatch.setattr(sweeps, "progress_bar", watched)
    short, long = grid(axes={"epochs": [1, 3]})
    lab.sweep([short, long], jobs=1, progress=False)
    assert shares == [0.75, 0.25]
    lab.sweep([short, long, *grid(axes={"seed": [1]})], jobs=1, progress=False)
    assert shares == [0.75, 0.25, 1]


def test_the_progress_line_counts_what_is_done_and_what_failed(store, capsys, monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE")
    first, second = grid(optimizer="sgd")
    lab.sweep([first], jobs=1)
    capsys.readouterr()
    lab.sweep([first, second, second.override(lr=1e30)], jobs=1)
    shown = capsys.readouterr().err
    assert "2 of 3 done, 0 failed [00:" in shown
    assert "2 of 3 done, 1 failed [00:" in shown
    assert " left]" in shown
