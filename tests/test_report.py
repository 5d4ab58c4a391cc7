import pandas as pd
import pytest

import labutils as lab
from labutils.report import label, report, summarise
from labutils.results import settings_that_vary


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


def test_the_bank_stands_in_for_an_empty_store(store, tmp_path):
    summary, files = report("mlp_depth_width", tmp_path, profile="laptop")
    assert summary["n"].sum() == 216
    assert {path.name for path in files} == {"runs.csv", "summary.csv", "depth_width.png"}
    assert len(pd.read_csv(tmp_path / "runs.csv")) == 216
    assert (tmp_path / "depth_width.png").read_bytes().startswith(b"\x89PNG")


def test_resnets_are_reported_by_their_layers(store, tmp_path):
    summary, files = report("cnn_depth", tmp_path, profile="laptop")
    assert set(summary["blocks"]) == {"[1, 1, 1, 1]", "[2, 2, 2, 2]", "[3, 4, 6, 3]", "[5, 6, 8, 5]"}
    assert set(summary[summary["width"] == 16]["n"]) == {3}
    assert {path.name for path in files} >= {"accuracy_by_depth.png", "accuracies.png"}


def test_the_store_comes_before_the_bank(store, tmp_path):
    one = lab.grid("mlp_narrow", profile="smoke")[0]
    lab.run(one, progress=False)
    summary, _ = report("mlp_narrow", tmp_path, profile="smoke")
    assert summary["n"].tolist() == [1]


def test_plain_or_residual_comes_first_in_a_label():
    assert label({"depth": 2, "residual": True}) == "residual, depth 2"
    assert label({"normalization": "batch", "residual": False}) == "plain, normalization batch"
