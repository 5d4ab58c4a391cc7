"""Sweeps over worker processes, killed ones among them, and over a real Ray cluster."""

import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import psutil
import pytest

import labutils as lab
from labutils import runs, sweeps, workers


def kept(store):
    return {path.name for path in store.iterdir() if not path.name.startswith(".")}


def grid(**settings):
    axes = settings.pop("axes", {"seed": [0, 1]})
    base = lab.Experiment.load("mlp_mnist", profile="smoke", **{"depth": 1, "width": 8, "epochs": 1, **settings})
    combinations = itertools.product(*axes.values())
    return [base.override(**dict(zip(axes, values, strict=True))) for values in combinations]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A small sweep in worker processes, two of whose runs fail."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABUTILS_RUNS", str(tmp_path_factory.mktemp("swept")))
        experiments = grid(axes={"lr": [1e-3, 1e30], "seed": [0, 1]}, optimizer="sgd")
        yield experiments, lab.sweep(experiments, jobs=2, progress=False), runs.store_root()


def test_a_sweep_gives_a_row_a_run_in_order(swept):
    experiments, results, _ = swept
    assert results["lr"].tolist() == [e.training.lr for e in experiments]
    assert results["seed"].tolist() == [0, 1, 0, 1]
    assert results["scheduler"].tolist() == ["none"] * 4
    assert results["threads"].dropna().unique().tolist() == [1]


def test_a_run_that_fails_in_a_sweep_is_reported_and_stops_nothing(swept):
    _, results, folder = swept
    assert results["error"].notna().tolist() == [False, False, True, True]
    assert "Diverged" in results["error"][2]
    assert kept(folder) == set(results["run"].dropna())


def test_a_sweep_goes_on_where_it_was(swept):
    experiments, results, folder = swept
    times = {path: path.stat().st_mtime_ns for path in folder.glob("*/metrics.json")}
    assert len(times) == 2
    again = lab.sweep(experiments[:2], jobs=1, progress=False)
    assert again["test_top1"].tolist() == results["test_top1"][:2].tolist()
    assert times == {path: path.stat().st_mtime_ns for path in folder.glob("*/metrics.json")}


def test_a_sweep_cleans_up_after_itself(swept):
    _, _, folder = swept
    assert not list(folder.glob(".sweep-*"))


def test_seeds_are_trained_together_and_give_what_they_give_alone(store, monkeypatch, one_thread):
    experiments = grid(axes={"seed": [0, 1, 2]}, depth=3)
    together = lab.sweep(experiments, jobs=1, progress=False)
    assert together["trained_together"].tolist() == [3, 3, 3]
    monkeypatch.setenv("LABUTILS_RUNS", str(store / "alone"))
    alone = [lab.run(experiment, progress=False).metrics for experiment in experiments]
    assert together["validation_loss"].tolist() == pytest.approx([m["validation_loss"] for m in alone], rel=1e-3)
    assert {m["trained_together"] for m in alone} == {1}


def test_gradients_are_logged_for_runs_that_are_trained_together(store):
    results = lab.sweep(grid(gradients=True), jobs=1, progress=False)
    assert results["trained_together"].tolist() == [2, 2]
    assert all((store / name / "gradients.csv").is_file() for name in results["run"])


def test_the_plan_stacks_equal_shapes_and_leaves_no_worker_without_work():
    def plan(experiments, workers):
        tasks = sweeps.plan({str(number): e for number, e in enumerate(experiments)}, workers)
        return [sorted(int(number) for number in task) for task in tasks]

    seeds = grid(axes={"seed": list(range(8))})
    assert plan(seeds, 1) == [list(range(8))]
    assert plan(seeds, 2) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert plan(seeds, 8) == [[number] for number in range(8)]
    # the deeper first; what can't be stacked by itself
    assert plan(grid(axes={"depth": [1, 5], "seed": [0, 1]}), 1) == [[2, 3], [0, 1]]
    assert plan(grid(dropout=0.1), 1) == [[0], [1]]
    assert plan(grid(wandb="offline"), 1) == [[0], [1]]
    assert max(map(len, plan(grid(axes={"seed": list(range(20))}), 1))) == sweeps.LARGEST_STACK


def test_an_experiment_given_twice_is_run_once(store):
    (experiment,) = grid(axes={"seed": [3]})
    results = lab.sweep([experiment, experiment], jobs=1, progress=False)
    assert results["run"].nunique() == len(kept(store)) == 1
    assert len(results) == 2


def test_never_more_workers_than_cores():
    import joblib

    with workers.open_workers(10_000, None) as some:
        assert some.count() == joblib.cpu_count()


@pytest.mark.parametrize(("arguments", "word"), [({"experiments": []}, "experiments"), ({"jobs": 0}, "jobs")])
def test_wrong_sweeps_are_named(experiment, arguments, word):
    with pytest.raises(lab.SettingError, match=word):
        lab.sweep(**{"experiments": [experiment]} | arguments)


def test_a_store_that_cannot_be_written_ends_a_sweep_at_once(monkeypatch):
    monkeypatch.setenv("LABUTILS_RUNS", "/proc/runs")
    with pytest.raises(lab.StoreError, match="/proc/runs"):
        lab.sweep(grid(), jobs=1, progress=False)


SWEEP = """
import sys, labutils as lab
settings = {"depth": 4, "width": 16, "epochs": 40, "dropout": 0.1}
experiments = lab.grid("mlp_mnist", axes={"seed": list(range(6))}, profile="smoke", **settings)
print(lab.sweep(experiments, jobs=int(sys.argv[1]), progress=False)["run"].notna().sum())
"""


def start_sweep(jobs):
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", SWEEP, str(jobs)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # two sweeps of two threads each would hinder one another
        start_new_session=True,
    )


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def births(store):
    """When each run was written; a run that was trained twice would have been written twice."""
    return {path.parent.name: path.stat().st_mtime_ns for path in store.glob("[!.]*/metrics.json")}


def test_a_sweep_that_was_killed_goes_on_and_two_share_the_work(store):
    killed = start_sweep(1)
    wait_for(lambda: len(births(store)) >= 1)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    before = births(store)
    assert len(before) < 6
    both = [start_sweep(1), start_sweep(1)]
    seen = {}
    while any(sweep.poll() is None for sweep in both):
        for name, birth in births(store).items():
            assert seen.setdefault(name, birth) == birth, "trained twice"
        time.sleep(0.02)
    assert [sweep.communicate()[0].strip() for sweep in both] == ["6", "6"]
    after = births(store)
    assert len(after) == 6
    assert before.items() <= after.items()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows keeps the number of a parent that is gone")
def test_the_workers_of_a_killed_sweep_end_with_it(store):
    killed = start_sweep(2)
    workers = []

    def working():
        workers[:] = [child for child in psutil.Process(killed.pid).children() if "LokyProcess" in str(child.cmdline())]
        return len(workers) == 2 and births(store)

    wait_for(working)
    killed.kill()
    killed.wait()
    assert psutil.wait_procs(workers, timeout=10)[1] == []


def test_a_worker_that_is_killed_costs_no_run(store):
    victims = []

    def kill_one():
        """Kill a worker once the first run is there."""
        wait_for(lambda: len(births(store)) >= 1)
        worker = next(child for child in psutil.Process().children() if "LokyProcess" in " ".join(child.cmdline()))
        victims.append(worker.pid)
        worker.kill()

    killer = threading.Thread(target=kill_one)
    killer.start()
    experiments = grid(axes={"seed": list(range(6))}, depth=4, width=16, epochs=200, dropout=0.1)
    with pytest.warns(sweeps.SweepWarning, match="killed"):
        results = lab.sweep(experiments, jobs=2, progress=False)
    killer.join()
    assert victims
    assert results["run"].nunique() == len(kept(store)) == 6
    assert "error" not in results


def test_runs_whose_workers_always_die_are_given_up(store, monkeypatch):
    class Mortal:
        def count(self):
            return 2

        def work(self, function, *arguments, environment):
            raise workers.WorkersDied("killed")

    monkeypatch.setattr(sweeps, "BUSY_POLL_S", 0)
    store.mkdir()
    with sweeps.journal() as folder, pytest.warns(sweeps.SweepWarning):
        rows = sweeps.run_all({"a": grid()[0], "b": grid()[1]}, Mortal(), folder)
    assert {row["error"] for row in rows.values()} == {"WorkersDied: killed"}


def test_the_progress_line_counts_what_the_journal_says(store, capsys, monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE")
    store.mkdir()
    names = dict(zip("abcd", grid(axes={"seed": [0, 1, 2, 3]}), strict=True))
    with sweeps.journal() as folder, sweeps.progress_line(folder, names, visible=True):
        for name, state in (("a", "found"), ("b", "done"), ("c", "failed"), ("d", "running")):
            sweeps.note(folder, name, state, None if state == "running" else {})
    shown = capsys.readouterr().err
    assert "2 of 4 done, 1 running, 1 failed" in shown
    assert " left]" in shown
    assert " 75%" in shown


def test_a_cluster_address_of_another_form_is_named():
    for address in ("http://there", "ray://", "ray://host", "ray://host:many"):
        with pytest.raises(lab.SettingError, match=r"cluster.*ray://HOST:PORT"):
            lab.sweep(grid(), cluster=address)


@pytest.mark.parametrize("address", ["ray://127.0.0.1:9", "auto"])
def test_a_cluster_that_does_not_answer_is_named_within_15_seconds(store, monkeypatch, address):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", lambda: set())
    start = time.monotonic()
    with pytest.raises(lab.ClusterError, match=f"{address}.*ray start --head"):
        lab.sweep(grid(), cluster=address, progress=False)
    assert time.monotonic() - start < 15
    assert not store.exists()


def test_an_address_that_accepts_and_says_nothing_is_named_within_15_seconds(store):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"ray://127.0.0.1:{silent.getsockname()[1]}"
        start = time.monotonic()
        with pytest.raises(lab.ClusterError, match=r"no answer within 6 s.*ray start --head"):
            lab.sweep(grid(), cluster=address, progress=False)
        assert time.monotonic() - start < 15


@pytest.mark.parametrize(("deaths", "joined"), [(0, True), (2, True), (3, False)])
def test_a_cluster_whose_server_dies_as_it_starts_is_asked_again(monkeypatch, deaths, joined):
    asked = []

    def init(address, **settings):
        asked.append(address)
        if len(asked) <= deaths:
            raise ConnectionAbortedError("Initialization failure from server")

    monkeypatch.setattr("ray.init", init)
    monkeypatch.setattr(workers, "answers", lambda address: True)
    if joined:
        workers.connect("ray://there:10001")
    else:
        with pytest.raises(lab.ClusterError, match="Initialization failure"):
            workers.connect("ray://there:10001")
    assert asked == ["ray://there:10001"] * min(deaths + 1, 3)


@pytest.fixture
def cluster():
    """A Ray cluster of two nodes of one core each, on this machine."""
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 1, "object_store_memory": 80_000_000}
    port = 10_000 + os.getpid() % 10_000 + 10_000
    cluster = Cluster(
        initialize_head=True, head_node_args={**small, "include_dashboard": False, "ray_client_server_port": port}
    )
    cluster.second = cluster.add_node(**small)
    cluster.wait_for_nodes()
    cluster.client = f"ray://127.0.0.1:{port}"
    yield cluster
    cluster.shutdown()


def test_a_cluster_loses_a_machine_and_every_run_ends_once(store, cluster, monkeypatch):
    experiments = grid(axes={"seed": list(range(8))}, depth=4, width=16, epochs=60, dropout=0.1)
    names = [runs.run_path(e, runs.load_experiment_data(e)).name for e in experiments]
    seen, over = {}, threading.Event()

    def watch():
        """Take a machine away once the first run is there, and look out for runs that are written a second time."""
        lost = False
        while not over.wait(0.02):
            for name, birth in births(store).items():
                assert seen.setdefault(name, birth) == birth, "trained twice"
            if seen and not lost:
                cluster.remove_node(cluster.second, allow_graceful=False)
                lost = True

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        results = lab.sweep(experiments, cluster=cluster.client, progress=False)
    finally:
        over.set()
        watcher.join()
    assert results["run"].tolist() == names
    assert seen == births(store)
    assert len(seen) == 8
    # the machine that is left, as the cluster this one belongs to
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    more = lab.sweep(grid(axes={"seed": [8, 9]}), cluster="auto", progress=False)
    assert more["run"].isin(kept(store)).all()
    assert more["threads"].tolist() == [1, 1]
