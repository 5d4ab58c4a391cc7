"""Nothing that can be written on the command line or into a config file ends in a traceback."""

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from labutils.cli.main import main
from labutils.data import archives, standins
from labutils.errors import SettingError
from labutils.experiments import running, sweeps
from labutils.experiments.configs import CONFIGS, config_names
from labutils.experiments.settings import SECTIONS, known_settings
from labutils.models.building import MODELS

NASTY = [
    "", "{", "[1", "[", "&x *y", "&x [*x]", "{<<: 3}", "? [a]", "!!python/object:os.system x", "!!int ''", "!!float x",
    "!!bool maybe", "!!timestamp x", "!!binary é", "!!set {a}", "!!omap [1: 2]", "=", "~", "null", "none", "None",
    "yes", "true", "0", "-0.0", "-1", "1", "2", "3.0", "0.1", "-1e-3", "1e-3", "1e400", ".nan", ".inf", "-.inf", "1:30",
    "9" * 23, "-" + "9" * 23, "9" * 5_000, "0x" + "f" * 5_000, "2020-01-01", "2020-13-01", "0001-01-01T00:00:00+23:59",
    "[1, 2, 2, 1]", "[1, 1, 1, 0]", "[1, 1, 1]", "[[1], 2, 3, 4]", "{a: 1}", "{1: 2}", "{depth: 3}", "a: b: c",
    "x\ny", "\0", "\x1b[31m", "%", "%s", "@x", "`x`", "'", '"', "- 1", "--", "--lr", "-h", "#", "é" * 300, "[" * 300,
    "basic", "batch", "resnet", "mlp", "shallow", "onecycle", "muon", "sgd", "knn", "svm", "cnn_backbone",
    "shapes_teacher", "builtin", "cifar10", "mnist", "depth", "zero", "offline",
]  # fmt: skip
# Networks of many thousand layers are allowed, and take a while to count: no more than a hundred here.
NUMBERS = st.integers(-3, 100) | st.floats() | st.sampled_from([10**5, 10**5 + 1, 2**31, 2**63 - 1, 2**63, 10**30])
NAMES = sorted({name for kind in MODELS for name in known_settings(kind)} - {"model.depth", "model.blocks"})
NAMES += [name.partition(".")[2] for name in NAMES] + ["", "dpeth", "model", "training.", ".lr", "a=b", "x\ny", "cls"]
SHALLOW = ["model.depth", "depth", "model.blocks", "blocks"]

words = st.sampled_from(NASTY) | NUMBERS.map(str) | st.text(max_size=20)
assignments = st.one_of(
    st.tuples(st.sampled_from(NAMES), words),
    st.tuples(st.sampled_from(SHALLOW), st.sampled_from(NASTY) | st.integers(-3, 100).map(str)),
)
given_settings = st.lists(assignments, min_size=1, max_size=3).flatmap(
    lambda pairs: st.tuples(
        *[st.sampled_from([[f"--{name}", value], [f"--{name}={value}"], [f"--{name}"]]) for name, value in pairs]
    )
)
leaves = st.none() | st.booleans() | NUMBERS | st.text(max_size=5) | st.dates() | st.sampled_from(NASTY)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4) | st.none(), inner),
    max_leaves=6,
)
SETTLED = settings(
    max_examples=150, deadline=20_000, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def small_data(name):
    """Arrays of a data set's shape, of grey images."""
    rows, classes = 400, len(archives.CLASSES[name])
    arrays = {}
    for part in ("train", "test"):
        arrays[f"x_{part}"] = np.full((rows, *archives.IMAGE_SHAPES[name]), 100, np.uint8)
        arrays[f"y_{part}"] = np.arange(rows, dtype=np.uint8) % classes
    return arrays


@pytest.fixture(autouse=True)
def nothing_trains(store, monkeypatch):
    """Experiments are built, their data loaded and their runs looked for; then an error ends it."""
    monkeypatch.setattr(standins, "stand_in", small_data)

    def stop(*arguments, **options):
        raise OSError("nothing trains here")

    monkeypatch.setattr(running, "train", stop)
    monkeypatch.setattr(sweeps, "train_all", stop)
    yield
    running.cached_data.cache_clear()  # of grey images, which other tests would take for the stand-ins


def check_ending(arguments, capsys):
    """Run the command line; it must end in help, or in one line on stderr and exit status 1 or 2."""
    capsys.readouterr()
    try:
        status = main(arguments)
    except SystemExit as error:
        status = error.code
    printed = capsys.readouterr()
    if status == 0:
        assert "usage:" in printed.out
    else:
        assert status == (1 if "nothing trains here" in printed.err else 2), printed.err
        assert printed.err.startswith("labutils: ")
        assert len(printed.err.splitlines()) == 1
    return status


@pytest.mark.parametrize(("command", "configs"), [("run", config_names()), ("sweep", ["mlp_chaos", "cnn_depth"])])
def test_no_setting_ends_in_a_traceback(capsys, command, configs):
    @SETTLED
    @given(st.sampled_from(configs), given_settings)
    def fuzz(config, assigned):
        check_ending([command, config, "--profile", "smoke", *(word for words in assigned for word in words)], capsys)

    fuzz()


@SETTLED
@given(
    arguments=st.lists(
        words | st.sampled_from(["run", "sweep", "export", "--profile", "--as", "mlp_mnist"]), max_size=4
    )
)
def test_no_words_end_in_a_traceback(capsys, arguments):
    if not {"doctor", "data", "course", "student", "report"} & set(arguments):
        check_ending(arguments, capsys)


@SETTLED
@given(data=st.data())
def test_no_config_file_ends_in_a_traceback(capsys, tmp_path, data):
    contents = yaml.safe_load((CONFIGS / f"{data.draw(st.sampled_from(config_names()))}.yaml").read_text())
    contents.pop("sweep", None)
    section = data.draw(st.sampled_from([*SECTIONS, "profiles", "sweep", "about", "modle"]))
    inner = contents.get(section)
    if isinstance(inner, dict) and data.draw(st.booleans()):
        name = data.draw(st.sampled_from(sorted(set(inner) - {"depth", "blocks"})) | st.text(max_size=5))
        inner[name] = data.draw(values)
    else:
        contents[section] = data.draw(values)
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(contents))
    check_ending(["run", str(path), "--profile", "smoke"], capsys)
    check_ending(["sweep", str(path), "--profile", "smoke"], capsys)


@SETTLED
@given(content=st.binary(max_size=60) | st.text(alphabet="{}[]:&*!<>|-?%,'\"# \nab1", max_size=40).map(str.encode))
def test_no_bytes_end_in_a_traceback(capsys, tmp_path, content):
    path = tmp_path / "own.yaml"
    path.write_bytes(content)
    assert check_ending(["run", str(path)], capsys) == 2


def test_the_check_sees_a_traceback(capsys, monkeypatch):
    def break_down(*arguments, **options):
        raise SettingError("lr", 1, "two\nlines")

    monkeypatch.setattr(running, "train", break_down)
    assert check_ending(["run", "mlp_mnist"], capsys) == 2
    monkeypatch.setattr(running, "train", lambda *arguments, **options: {}["missing"])
    with pytest.raises(KeyError):
        check_ending(["run", "mlp_mnist"], capsys)
