import re

import pandas as pd
import pytest

import labutils as lab
from labutils.cli.main import main
from labutils.cli.report import finished_runs, label, readable, report, summarise
from labutils.experiments.results import settings_that_vary


def test_the_summary_is_mean_and_spread_over_seeds():
    bank = lab.load_results("mlp_residual")
    summary = summarise(bank, ["depth", "residual", "normalization", "residual_scale"])
    assert len(summary) == 30
    assert set(summary["n"]) == {5}
    cell = bank[(bank["depth"] == 20) & ~bank["residual"] & (bank["normalization"] == "none")]["test_top1"]
    row = summary[(summary["depth"] == 20) & ~summary["residual"] & (summary["normalization"] == "none")].iloc[0]
    assert row["test_top1_mean"] == pytest.approx(cell.mean())
    assert row["test_top1_std"] == pytest.approx(cell.std())


def test_what_varies_is_found():
    assert settings_that_vary(lab.load_results("mlp_residual")) == [
        "depth", "residual", "normalization", "residual_scale", "seed"
    ]  # fmt: skip


def test_the_bank_stands_in_for_an_empty_store(store, tmp_path, monkeypatch):
    monkeypatch.setattr("labutils.cli.report.kept_run", lambda experiment: None)  # 360 times the same question
    summary, files = report("mlp_depth_width", tmp_path, profile="laptop")
    assert summary["n"].sum() == 360
    assert {path.name for path in files} == {"runs.csv", "summary.csv", "depth_width.png"}
    assert len(pd.read_csv(tmp_path / "runs.csv")) == 360
    assert (tmp_path / "depth_width.png").read_bytes().startswith(b"\x89PNG")


def test_banked_rows_of_other_settings_are_not_reported(store, tmp_path, monkeypatch):
    monkeypatch.setattr("labutils.cli.report.kept_run", lambda experiment: None)
    twice = lab.grid("mlp_cifar10", profile="laptop", epochs=2)
    with pytest.raises(lab.SettingError, match="report: 'mlp_cifar10 at the laptop profile'"):
        finished_runs(twice, "mlp_cifar10")
    seeds = lab.grid("mlp_cifar10", profile="laptop", seed=1)
    assert set(finished_runs(seeds, "mlp_cifar10")["seed"]) == {1}


def test_resnets_are_reported_by_their_layers(store, tmp_path, monkeypatch):
    monkeypatch.setattr("labutils.cli.report.kept_run", lambda experiment: None)
    summary, files = report("cnn_depth", tmp_path, profile="laptop")
    assert set(summary["blocks"]) == {"[1, 1, 1, 1]", "[2, 2, 2, 2]", "[3, 4, 6, 3]", "[5, 6, 8, 5]"}
    assert set(summary[summary["width"] == 16]["n"]) == {3}
    assert {path.name for path in files} >= {"accuracy_by_depth.png", "accuracies.png"}


def test_the_store_comes_before_the_bank(store):
    one, other = lab.grid("mlp_chaos", profile="smoke", epochs=1, limit=100)[:2]
    lab.run(one, progress=False)
    found = finished_runs([one, other], "mlp_chaos")
    assert found["epochs"].tolist() == [1]


@pytest.fixture
def sweep_of(tmp_path):
    """Runs the smallest networks over some axes, and reports."""

    def swept(axes):
        path = tmp_path / "own.yaml"
        path.write_text(
            "data: {name: mnist, source: builtin, limit: 100}\nmodel: {kind: mlp, depth: 1, width: 4}\n"
            f"training: {{epochs: 1}}\nsweep: {axes}\n"
        )
        for experiment in lab.grid(path):
            lab.run(experiment, progress=False)
        return report(path, tmp_path / "report")

    return swept


def test_limits_are_not_pooled(store, sweep_of):
    summary, _ = sweep_of("{data.limit: [100, 200], training.seed: [0, 1]}")
    assert summary["limit"].tolist() == [100, 200]
    assert summary["n"].tolist() == [2, 2]


def test_seeds_of_the_data_are_repetitions(store, sweep_of):
    summary, _ = sweep_of("{data.seed: [0, 1], training.seed: [0, 1]}")
    assert summary["n"].tolist() == [4]


def test_a_single_seed_is_given_without_a_spread(store, sweep_of):
    summary, files = sweep_of("{model.depth: [1, 2], model.width: [3, 4]}")
    table = readable(summary)
    assert table["n"].tolist() == [1, 1, 1, 1]
    assert table["test_top1 (%)"].str.fullmatch(r"\d+\.\d\d").all()
    assert {"depth_width.png", "accuracies.png"} <= {path.name for path in files}


def test_report_tells_and_draws_what_a_sweep_found(store, tmp_path, capsys):
    path = tmp_path / "own.yaml"
    path.write_text(
        "data: {name: mnist, source: builtin, limit: 100}\nmodel: {kind: mlp, depth: 1, width: 4}\n"
        "training: {epochs: 1}\nsweep: {model.depth: [1, 2], training.seed: [0, 1, 2]}\n"
    )
    assert main(["report", str(path), "--to", str(tmp_path / "none")]) == 2
    assert "finished runs" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    assert main(["sweep", str(path), "--jobs", "1"]) == 0
    capsys.readouterr()
    assert main(["report", str(path), "--to", str(tmp_path / "report")]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^ *2 +3 +\d+ +\d+\.\d\d ± \d+\.\d\d", printed, flags=re.MULTILINE)
    kept = {path.name for path in (tmp_path / "report").iterdir()}
    assert kept == {"runs.csv", "summary.csv", "accuracy_by_depth.png", "accuracies.png"}
    assert all(str(tmp_path / "report" / name) in printed for name in kept)


def test_plain_or_residual_comes_first_in_a_label():
    assert label({"depth": 2, "residual": True}) == "residual, depth 2"
    assert label({"normalization": "batch", "residual": False}) == "plain, normalization batch"
