"""wandb is tried for real, offline, and what it wrote is read back with its own reader."""

import json
import subprocess
import sys
import threading
import time

import pytest

import labutils as lab
from labutils import tracking


def read_offline_run(store):
    """The run message, history rows and summary of the one offline run under a folder."""
    (folder,) = store.glob("wandb/offline-run-*")
    reader = [sys.executable, "-m", "wandb", "leet", "inspect", str(folder), "--json"]
    printed = subprocess.run(reader, capture_output=True, text=True, check=True).stdout
    run, rows, summary = {}, [], {}
    for record in map(json.loads, printed.splitlines()):
        if record["type"] == "run":
            run = record["run"]
        elif record["type"] == "history":
            rows.append(record["history"]["item"])
        elif record["type"] == "summary":
            summary |= record["summary"]["update"]
    return run, rows, summary


@pytest.fixture
def prompt_free(monkeypatch, tmp_path):
    """A home without wandb credentials."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


@pytest.mark.parametrize(("residual", "group"), [(False, "No Residual"), (True, "Residual")])
def test_an_offline_mirror_holds_the_local_figures(store, experiment, residual, group):
    experiment = experiment.override(wandb="offline", gradients=True, tags=("lab", "one"), residual=residual)
    finished = lab.run(experiment, progress=False)
    run, rows, summary = read_offline_run(store)
    config = run["config"]["update"]
    assert config["model"]["depth"] == 2
    assert config["training"]["epochs"] == 2
    assert config["data_title"] == finished.metrics["data"]
    assert (run["run_group"], run["job_type"], run["tags"]) == (group, "train", ["lab", "one"])
    assert len(rows) == 2
    for mirrored, (_, local) in zip(rows, finished.history.frame.iterrows(), strict=True):
        assert {name: mirrored[name] for name in local.index} == pytest.approx(local.to_dict())
    last = finished.history.probes[finished.history.probes["epoch"] == 2]
    for row in last.itertuples():
        assert rows[-1][f"gradients/{row.name}.{row.kind}"] == pytest.approx(row.norm)
    assert summary["test_top1"] == pytest.approx(finished.metrics["test_top1"])


def test_an_absent_wandb_costs_a_warning(store, experiment, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.warns(tracking.TrackingWarning, match="wandb does not mirror this run"):
        finished = lab.run(experiment.override(wandb="offline"), progress=False)
    assert finished.path.is_dir()


def test_online_without_an_account_asks_nothing_and_stays_offline(store, experiment, prompt_free):
    with pytest.warns(tracking.TrackingWarning, match="nobody is logged in"):
        finished = lab.run(experiment.override(wandb="online"), progress=False)
    assert finished.path.is_dir()
    _, rows, _ = read_offline_run(store)
    assert len(rows) == 2


def test_a_wandb_that_hangs_is_left_behind(store, experiment, monkeypatch):
    import wandb

    monkeypatch.setattr(wandb, "init", lambda **options: threading.Event().wait())  # for good
    monkeypatch.setattr(tracking, "FINISH_TIMEOUT_S", 0.3)
    start = time.perf_counter()
    with pytest.warns(tracking.TrackingWarning, match="left behind"):
        finished = lab.run(experiment.override(wandb="offline"), progress=False)
    assert time.perf_counter() - start < 10
    assert finished.path.is_dir()


def test_disabled_starts_nothing(store, experiment, monkeypatch):
    monkeypatch.setattr(tracking.threading, "Thread", lambda **options: pytest.fail("a thread was started"))
    lab.run(experiment, progress=False)
    assert not (store / "wandb").exists()
