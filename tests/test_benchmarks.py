"""The benchmarks without their timing: every line can be made."""

import functools
import importlib.util
from pathlib import Path

import pytest

import labutils as lab

BENCH = Path(__file__).parents[1] / "benchmarks" / "bench.py"


def test_every_line_can_be_made_and_a_word_that_none_has_is_an_error(store, monkeypatch):
    specification = importlib.util.spec_from_file_location("bench", BENCH)
    bench = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(bench)
    monkeypatch.setattr(lab, "load_data", functools.partial(lab.load_data, source="builtin"))
    monkeypatch.setattr("sys.argv", [str(BENCH), "no such line"])
    with pytest.raises(SystemExit, match="no line has 'no such line' in its name"):
        bench.main()
