"""Sweeps on a real Ray cluster, which loses a machine; and addresses where there is none."""

import os
import socket
import threading

import pytest

import labutils as lab
from labutils.experiments import cluster
from labutils.experiments.running import identify, load_experiment_data
from labutils.experiments.store import run_path

ray = pytest.importorskip("ray", reason="the cluster extra is not installed")


def grid(seeds, **settings):
    base = lab.Experiment.load("mlp_mnist", profile="smoke", **{"depth": 1, "width": 8, "epochs": 1, **settings})
    return [base.override(seed=seed) for seed in seeds]


def births(store):
    """When each run was written; a run that was trained twice would have been written twice."""
    return {path.parent.name: path.stat().st_mtime_ns for path in store.glob("[!.]*/metrics.json")}


@pytest.mark.parametrize("address", ["http://there", "ray://", "ray://host", "ray://host:many", "ray://host:99999", 3])
def test_an_address_of_another_form_is_named(address):
    with pytest.raises(lab.SettingError, match=r"cluster: .*ray://HOST:PORT"):
        lab.sweep(grid([0]), cluster=address)


@pytest.mark.parametrize("address", ["ray://127.0.0.1:9", "auto"])
def test_a_cluster_that_is_not_there_is_named(store, monkeypatch, address):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", lambda: set())
    monkeypatch.setattr(cluster, "ANSWER_TIMEOUT_S", 0.5)
    with pytest.raises(lab.ClusterError, match=f"{address}.*ray start --head"):
        lab.sweep(grid([0]), cluster=address, progress=False)
    assert not store.exists()


def test_an_address_that_accepts_and_says_nothing_is_named(store, monkeypatch):
    monkeypatch.setattr(cluster, "ANSWER_TIMEOUT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"ray://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(lab.ClusterError, match=r"no answer within 0\.5 s.*ray start --head"):
            lab.sweep(grid([0]), cluster=address, progress=False)


def test_a_cluster_that_does_not_let_one_join_is_named(monkeypatch):
    over = threading.Event()
    monkeypatch.setattr("ray.init", lambda address, **settings: over.wait(60))
    monkeypatch.setattr(cluster, "answers", lambda address: True)
    monkeypatch.setattr(cluster, "JOIN_TIMEOUT_S", {"auto": 0.1, "ray://": 0.2})
    for address, seconds in (("auto", "0.1"), ("ray://there:10001", "0.2")):
        with pytest.raises(lab.ClusterError, match=f"not joined within {seconds} s"), cluster.connected(address):
            pass
    over.set()


def test_no_answer_takes_seconds_and_joining_two_minutes_at_most():
    assert 1 <= cluster.ANSWER_TIMEOUT_S <= 10
    assert cluster.ANSWER_TIMEOUT_S <= cluster.JOIN_TIMEOUT_S["auto"] < cluster.JOIN_TIMEOUT_S["ray://"] <= 120


@pytest.mark.parametrize(("deaths", "joined"), [(0, True), (2, True), (3, False)])
def test_a_cluster_whose_server_dies_as_it_starts_is_asked_again(monkeypatch, deaths, joined):
    asked, left = [], []

    def init(address, **settings):
        asked.append(address)
        if len(asked) <= deaths:
            raise ConnectionAbortedError("Initialization failure from server")

    monkeypatch.setattr("ray.init", init)
    monkeypatch.setattr("ray.shutdown", lambda: left.append(True))
    monkeypatch.setattr(cluster, "answers", lambda address: True)
    if joined:
        with cluster.connected("ray://there:10001"):
            assert not left
        assert left == [True]
    else:
        with (
            pytest.raises(lab.ClusterError, match="Initialization failure"),
            cluster.connected("ray://there:10001"),
        ):
            pass
    assert asked == ["ray://there:10001"] * min(deaths + 1, 3)


def test_another_failure_to_join_is_final(monkeypatch):
    asked = []

    def init(address, **settings):
        asked.append(address)
        raise RuntimeError("another version\nof Ray")

    monkeypatch.setattr("ray.init", init)
    with pytest.raises(lab.ClusterError, match=r"\(another version of Ray\)"), cluster.connected("auto"):
        pass
    assert asked == ["auto"]


@pytest.fixture(scope="module")
def two_nodes():
    """A Ray cluster of two nodes of one core each, on this machine."""
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 1, "object_store_memory": 80_000_000}
    port = 20_000 + os.getpid() % 10_000
    cluster = Cluster(
        initialize_head=True, head_node_args={**small, "include_dashboard": False, "ray_client_server_port": port}
    )
    cluster.second = cluster.add_node(**small)
    cluster.wait_for_nodes()
    cluster.client = f"ray://127.0.0.1:{port}"
    yield cluster
    cluster.shutdown()


@pytest.mark.slow
def test_a_cluster_loses_a_machine_and_every_run_ends_once(store, two_nodes, monkeypatch):
    experiments = grid(range(8), depth=4, width=16, epochs=60, dropout=0.1)
    names = [run_path(identify(e, load_experiment_data(e))).name for e in experiments]
    seen, over = {}, threading.Event()

    def watch():
        """Take a machine away once the first run is there, and look out for runs that are written a second time."""
        lost = False
        while not over.wait(0.02):
            for name, birth in births(store).items():
                assert seen.setdefault(name, birth) == birth, "trained twice"
            if seen and not lost:
                two_nodes.remove_node(two_nodes.second, allow_graceful=False)
                lost = True

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        table = lab.sweep(experiments, cluster=two_nodes.client, progress=False)
    finally:
        over.set()
        watcher.join()
    assert table["run"].tolist() == names
    assert seen == births(store)
    assert len(seen) == 8
    assert {path.name for path in store.iterdir()} == {*names, ".locks", ".checkpoints"}
    # the machine that is left, as the cluster this one belongs to
    monkeypatch.setenv("RAY_ADDRESS", two_nodes.address)
    more = lab.sweep(grid([8, 9]), cluster="auto", progress=False)
    assert more["run"].isin(births(store)).all()
    assert more["threads"].tolist() == [1, 1]


@pytest.mark.slow
def test_on_a_cluster_failures_are_rows_or_end_the_sweep(store, two_nodes, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", two_nodes.address)
    good, ill = grid([0], optimizer="sgd") + grid([0], optimizer="sgd", lr=1e30)
    table = lab.sweep([good, ill], cluster="auto", jobs=1, progress=False)
    assert table["error"].isna().tolist() == [True, False]
    assert table["error"][1].startswith("Diverged")
    monkeypatch.setenv("LABUTILS_RUNS", "/proc/runs")
    with pytest.raises(lab.StoreError, match="/proc/runs"):
        lab.sweep([good], cluster="auto", progress=False)


@pytest.mark.slow
def test_a_task_whose_worker_always_dies_is_given_up(two_nodes, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", two_nodes.address)
    monkeypatch.setattr(cluster, "MACHINES_LOST", 1)

    # Inside the test, because a worker can't import this file.
    def double(number):
        return 2 * number

    def die():
        os.kill(os.getpid(), 9)

    with cluster.connected("auto"):
        assert sorted(cluster.on_cluster(double, [(1,), (2,), (3,)], jobs=2)) == [2, 4, 6]
        with pytest.raises(cluster.WorkersDied, match="again and again"):
            list(cluster.on_cluster(die, [()], jobs=None))
    assert not ray.is_initialized()
