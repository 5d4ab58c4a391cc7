"""labutils verify, on a small bank and claims of its own."""

import pytest

import labutils as lab
from labutils.cli import verify as module
from labutils.cli.main import main
from labutils.experiments import results
from labutils.experiments.running import kept_run
from labutils.notebook.claims import Comparison

SIDES = {"bank": ("mlp_chaos",), "first": {"depth": 1}, "second": {"depth": 2}, "headline": True}
CLAIMS = [
    Comparison("one layer beats two by a point", **SIDES, by=0.01),
    Comparison("one layer beats two, at width 5", **SIDES, where={"width": 5}),
    Comparison("one layer is above chance", **SIDES | {"second": 0.05}),
    Comparison("not asked", **SIDES | {"headline": False, "second": 0.99}),
]


@pytest.fixture
def bank(tmp_path, monkeypatch):
    """A bank in which one layer is far better than two, and a sweep that has not been run."""
    monkeypatch.setattr(results, "results_folder", lambda: tmp_path)
    experiments = [
        lab.Experiment.load("mlp_chaos", profile="smoke", depth=depth, width=4, epochs=1, limit=100, seed=seed)
        for depth in (1, 2)
        for seed in range(3)
    ]
    rows = [
        {"run": f"{number}"} | results.settings_row(one) | {"test_top1": 0.9 / one.model["depth"], "seconds": 60.0}
        for number, one in enumerate(experiments)
    ]
    results.save_results("mlp_chaos", results.tabulate(rows))
    monkeypatch.setattr(module, "grid", lambda name, profile: experiments)
    monkeypatch.setattr(module, "read_comparisons", lambda notebook: CLAIMS)
    return experiments


def test_it_says_beforehand_what_it_trains_and_for_how_long(store, bank, capsys):
    assert main(["verify", "01", "--dry-run", "--jobs", "1"]) == 0
    printed = capsys.readouterr().out
    assert "notebook 01: 2 headline claims, 6 runs, about 6 min (the bank's took 6 min; 1 go at a time)" in printed
    assert "left out, because this profile has not the runs it is about: one layer beats two, at width 5" in printed
    assert not store.exists() or not list(store.glob("[!.]*"))


def test_it_names_the_trained_networks_that_it_does_not_train_anew(bank, monkeypatch, capsys):
    taught = [one.override(teacher="shapes_teacher") for one in bank]
    monkeypatch.setattr(module, "grid", lambda name, profile: taught)
    main(["verify", "01", "--dry-run"])
    trained_on = lab.load_pretrained("shapes_teacher")[1]["metrics"]["data"]
    assert f"not trained anew: shapes_teacher, trained on {trained_on}\n" in capsys.readouterr().out


def test_it_judges_the_runs_that_are_trained_here_beside_those_of_the_bank(store, bank, capsys):
    assert main(["verify", "01", "--jobs", "1"]) == 0
    printed = capsys.readouterr().out
    anew = [one.override(seed=one.training.seed + module.NEW_SEEDS) for one in bank]
    assert not any(map(kept_run, bank)), "the banked seeds would give the banked figures"
    found = [kept_run(one).metrics["test_top1"] for one in anew]
    effect = 100 * (sum(found[:3]) - sum(found[3:])) / 3
    first, second = printed.split("2. one layer is above chance")
    assert "bank: +45.00 points" in first
    assert f"here: {effect:+.2f} points" in first
    assert "data here: scikit-learn digits" in first
    assert second.count("n = 3") == 2
    assert "not asked" not in printed


def test_a_notebook_that_is_not_there_is_named(capsys):
    assert main(["verify", "09"]) == 2
    assert "09: no such name" in capsys.readouterr().err
