import json
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


@pytest.mark.parametrize("name", ["experiment.yaml", "history.csv", "metrics.json", "model.safetensors"])
def test_a_run_with_a_missing_file_is_reported_and_run_again(store, experiment, name):
    other = lab.run(experiment.override(seed=1), progress=False)
    path = lab.run(experiment, progress=False).path
    (path / name).unlink()
    with pytest.warns(runs.DamagedRun, match=path.name):
        mended = lab.run(experiment, progress=False)
    assert (mended.path / name).is_file()
    assert other.path.is_dir()


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
    assert [path.name for path in store.iterdir()] == [".locks"]


def test_a_failed_write_leaves_nothing_and_keeps_what_was_there(store, experiment, monkeypatch):
    first = lab.run(experiment, progress=False)

    def full(*arguments, **options):
        raise OSError("No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_csv", full)
    with pytest.raises(OSError, match="No space"):
        lab.run(experiment, force=True, progress=False)
    monkeypatch.undo()
    monkeypatch.setenv("LABUTILS_RUNS", str(store))
    assert {path.name for path in store.iterdir()} == {".locks", first.path.name}
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


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A small sweep in worker processes, one of whose runs fails."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABUTILS_RUNS", str(tmp_path_factory.mktemp("swept")))
        axes = {"lr": [1e-3, 1e30], "seed": [0, 1]}
        experiments = lab.grid("mlp_mnist", axes=axes, profile="smoke", depth=1, width=8, epochs=1, optimizer="sgd")
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
    kept = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    assert kept == set(results["run"].dropna())


def test_a_sweep_goes_on_where_it_was(swept):
    experiments, results, folder = swept
    times = {path: path.stat().st_mtime_ns for path in folder.glob("*/metrics.json")}
    assert len(times) == 2
    again = lab.sweep(experiments[:2], jobs=1, progress=False)
    assert again["test_top1"].tolist() == results["test_top1"][:2].tolist()
    assert times == {path: path.stat().st_mtime_ns for path in folder.glob("*/metrics.json")}


def test_the_bank_gives_back_what_was_put_in(swept, tmp_path, monkeypatch):
    _, results, _ = swept
    monkeypatch.setattr(runs, "results_folder", lambda: tmp_path)
    runs.save_results("small", results)
    banked = lab.load_results("small")
    assert banked["normalization"].tolist() == ["none"] * 4
    assert banked["test_loss"][:2].tolist() == results["test_loss"][:2].tolist()
    assert banked["error"].isna().tolist() == [True, True, False, False]
    with pytest.raises(lab.SettingError, match=r"smal: .*did you mean small"):
        lab.load_results("smal")


@pytest.mark.parametrize(("arguments", "word"), [({"experiments": []}, "experiments"), ({"jobs": 0}, "jobs")])
def test_wrong_sweeps_are_named(experiment, arguments, word):
    with pytest.raises(lab.SettingError, match=word):
        lab.sweep(**{"experiments": [experiment]} | arguments)


def test_the_bank_holds_three_seeds_of_every_cell():
    bank = lab.load_results("mlp_depth_width")
    cells = bank.groupby(["depth", "width", "normalization", "scheduler"])["seed"].agg(set)
    assert len(cells) == 6 * 3 * 2 * 2
    assert all(seeds == {0, 1, 2} for seeds in cells)
    assert set(bank["data"]) == {"MNIST"}
    assert set(bank["profile"]) == {"laptop"}
