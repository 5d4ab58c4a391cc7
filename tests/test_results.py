import pandas as pd
import pytest

import labutils as lab
from labutils import results


def test_the_bank_gives_back_what_was_put_in(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "results_folder", lambda: tmp_path)
    table = pd.DataFrame(
        {"normalization": ["none", "batch"], "test_loss": [0.1 + 0.2, 1e-17], "error": [None, "Diverged"]}
    )
    results.save_results("small", table)
    banked = lab.load_results("small")
    assert banked["normalization"].tolist() == ["none", "batch"]
    assert banked["test_loss"].tolist() == table["test_loss"].tolist()
    assert banked["error"].isna().tolist() == [True, False]
    assert [path.name for path in tmp_path.iterdir()] == ["small.csv"]
    with pytest.raises(lab.SettingError, match=r"smal: .*did you mean small"):
        lab.load_results("smal")


def test_the_bank_holds_three_seeds_of_every_cell():
    bank = lab.load_results("mlp_depth_width")
    cells = bank.groupby(["depth", "width", "normalization", "scheduler"])["seed"].agg(set)
    assert len(cells) == 6 * 3 * 2 * 2
    assert all(seeds == {0, 1, 2} for seeds in cells)
    assert set(bank["data"]) == {"MNIST"}
    assert set(bank["profile"]) == {"laptop"}


def test_the_bank_of_residual_nets_holds_five_seeds_of_every_cell():
    bank = lab.load_results("mlp_residual")
    cells = bank.groupby(["depth", "residual", "normalization", "residual_scale"])["seed"].agg(set)
    assert len(cells) == 5 * (2 * 2 + 2)
    assert all(seeds == set(range(5)) for seeds in cells)
    assert (set(bank["data"]), set(bank["profile"]), set(bank["width"])) == ({"MNIST"}, {"laptop"}, {128})


@pytest.mark.parametrize("name", ["mlp_depth_width", "mlp_residual", "mlp_narrow"])
def test_every_banked_run_says_where_it_comes_from(name):
    bank = lab.load_results(name)
    assert bank[["data", "source", "profile", "torch", "processor", "date", "version"]].notna().all(axis=None)
    assert len(bank) == len(lab.grid(name, profile="laptop"))
