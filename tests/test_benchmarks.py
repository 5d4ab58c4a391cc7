"""The benchmarks without their timing: what they refuse, and that their sides can be made."""

import functools
import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest

import labutils as lab

BENCH = Path(__file__).parents[1] / "benchmarks" / "bench.py"


@pytest.fixture
def bench(store, monkeypatch):
    """The benchmarks, on stand-ins."""
    specification = importlib.util.spec_from_file_location("bench", BENCH)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    monkeypatch.setattr(lab, "load_data", functools.partial(lab.load_data, source="builtin"))
    monkeypatch.setattr("sys.argv", [str(BENCH), "no such line"])
    return module


def test_stand_ins_are_refused(bench):
    with pytest.raises(SystemExit, match="the bars are for MNIST and CIFAR-10, which are not here"):
        bench.main()


def test_a_word_that_no_line_has_is_an_error(bench, monkeypatch):
    load = lab.load_data
    monkeypatch.setattr(lab, "load_data", lambda *names, **options: replace(load(*names, **options), source="archive"))
    with pytest.raises(SystemExit, match="no line has 'no such line' in its name"):
        bench.main()


def test_the_sides_can_be_made_and_run(bench):
    sweep, read = bench.looking_up(2)
    sweep(), read()
    bench.expanding(3)(), bench.setting(3)()
    few = lab.load_data("mnist", limit=300, validation=0, device="cpu")
    model = lab.MLP(1, 4)
    for make in (bench.fitting, bench.bare_loop, bench.fitting_with_teacher):
        make(model, few)()
    bench.usual_loop(few, {"depth": 1, "width": 4}, workers=0)()
    assert bench.moving()() > 0
    assert bench.stopping("mlp_mnist", epochs=5_000)() >= 0
    assert bench.drawing("mlp_mnist", epochs=2)() > 0
