"""What the set-up files say must agree, and importing the package must stay cheap."""

import argparse
import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import labutils as lab
from labutils.cli import read_settings

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DEPENDENCIES = [
    *PROJECT["dependencies"],
    *(line for extra in PROJECT["optional-dependencies"].values() for line in extra),
]
CONDA_NAMES = {"torch": "pytorch", "ray": "ray-default", "playwright": "playwright-python"}
# What extras of ours bring in is listed by name for conda, which knows no extras.
OF_EXTRAS = {"docstring-parser": "jsonargparse", "typeshed-client": "jsonargparse", "grpcio": "ray"}


def normalised(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def test_conda_gets_the_same_set():
    wanted = map(Requirement, DEPENDENCIES)
    expected = {normalised(CONDA_NAMES.get(r.name, r.name)): str(r.specifier) for r in wanted}
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    listed = [Requirement(line) for line in environment if isinstance(line, str) and line != "pip"]
    found = {normalised(r.name): str(r.specifier) for r in listed if normalised(r.name) not in OF_EXTRAS}
    assert found.pop("python") == PROJECT["requires-python"]
    assert found == expected
    assert {"pip": ["--editable ."]} in environment
    assert {normalised(r.name) for r in listed} >= set(OF_EXTRAS)


def test_the_lock_holds_every_dependency_with_hashes_and_no_host():
    lock = (ROOT / "requirements.lock").read_text()
    pins = dict(re.findall(r"^([A-Za-z0-9_.-]+)==(\S+)", lock, flags=re.MULTILINE))
    pins = {normalised(name): version for name, version in pins.items()}
    for line in DEPENDENCIES:
        requirement = Requirement(line)
        assert requirement.specifier.contains(pins[normalised(requirement.name)]), line
    entries = re.split(r"\n(?=\S)", lock.split("\n", 2)[2])
    assert all("--hash=sha256:" in entry for entry in entries if "==" in entry)
    assert "://" not in lock
    assert "index-url" not in lock


def test_heavy_libraries_wait_until_they_are_used():
    heavy = ["torchvision", "sklearn", "wandb", "seaborn", "matplotlib", "ray", "ipywidgets", "jsonargparse"]
    code = f"import sys, labutils; print([name for name in {heavy} if name in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"


def test_no_module_imports_one_above_it():
    layers = [
        ["errors", "superclasses", "workspaces"],
        ["standins", "archives", "workers", "augmentation", "memory", "checkpoints", "muon", "stopping"], ["data"],
        ["models"], ["training", "backbones"], ["extraction"], ["transfer", "distillation"],
        ["probes", "stacks", "tracking"], ["experiment"], ["runs", "results"],
        ["sweeps"], ["plots", "exercises"],
        ["teaching", "report"], ["widgets", "doctor", "course"], ["cli"],
    ]  # fmt: skip
    rank = {name: level for level, names in enumerate(layers) for name in names}
    modules = {path.stem for path in (ROOT / "labutils").glob("*.py")} - {"__init__", "__main__"}
    assert modules == set(rank)
    for module in modules:
        source = (ROOT / "labutils" / f"{module}.py").read_text()
        imported = set(re.findall(r"from labutils\.(\w+) import", source))
        for names in re.findall(r"from labutils import ([\w, ]+)", source):
            imported |= set(names.split(", "))
        assert all(rank[name] < rank[module] for name in imported), (module, imported)


def test_the_readme_gives_the_banks_figures():
    bank = lab.load_results("mlp_depth_width")
    plain = bank[(bank["normalization"] == "none") & (bank["scheduler"] == "none")]
    skips = lab.load_results("mlp_residual").query("depth == 80 and normalization == 'none'")
    deep = lab.load_results("cnn_depth").query("layers == 50 and width == 16 and zero_init_residual")
    improved = lab.load_results("cnn_improved").query("epochs == 5")
    transfers = lab.load_results("transfer_ladder").query("not progressive")
    started = transfers.query("backbone != 'none'")
    students = lab.load_results("distillation").query("not residual")
    few = lab.load_results("distillation_data").query("per_class == 450")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for runs in (
        plain.query("depth == 2 and width == 128"),
        plain.query("depth == 10 and width == 64"),
        plain.query("depth == 40"),
        skips.query("not residual"),
        skips.query("residual and residual_scale == '1.0'"),
        skips.query("residual and residual_scale == 'depth'"),
        deep.query("not residual"),
        deep.query("residual"),
        improved.query("augment == 'none'"),
        improved.query("averaging > 0"),
        lab.load_results("cnn_shallow"),
        started.query("method == 'knn'"),
        started.query("method == 'probe'"),
        started.query("method == 'fine_tuning' and stages == 1"),
        started.query("method == 'fine_tuning' and stages == -1"),
        transfers.query("backbone == 'none'"),
        lab.load_results("transfer_wide").query("method == 'probe'"),
        students.query("teacher == 'none' and label_smoothing == 0"),
        students.query("teacher == 'none' and label_smoothing > 0"),
        students.query("alpha == 0.7 and temperature == 3"),
        students.query("consistent"),
        few.query("teacher == 'none'"),
        few.query("teacher != 'none'"),
    ):
        assert len(runs) >= 3
        assert f"{100 * runs['test_top1'].mean():.2f} ± {100 * runs['test_top1'].std():.2f} %" in readme


DOCUMENTS = ("README.md", "docs/teaching.md", "data/README.md")


def commands_in(text):
    """The labutils commands of a document: in code spans, and line by line in code blocks."""
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    lines = [line.partition("#")[0] for block in blocks for line in block.splitlines()] + spans
    return [shlex.split(line)[1:] for line in lines if re.match(r"labutils (run|sweep|export|report) [a-z]", line)]


def documented_runs():
    for name in DOCUMENTS:
        for words in commands_in((ROOT / name).read_text(encoding="utf-8")):
            yield pytest.param(words, id=f"{name}: {' '.join(words)}")


@pytest.mark.parametrize("words", list(documented_runs()))
def test_the_commands_that_are_documented_can_be_given(words):
    command, config, *rest = words
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--profile")
    if command == "sweep":
        options.add_argument("--cluster")
        options.add_argument("--jobs")
        for name in ("results", "epochs", "gradients"):
            options.add_argument(f"--save-{name}", action="store_true")
    given, settings = options.parse_known_args(rest)
    if settings != ["--help"]:
        lab.Experiment.load(config, profile=given.profile, **read_settings(config, given.profile, settings))


def test_ci_elsewhere_runs_what_ci_here_runs():
    here = (ROOT / ".ci" / "run").read_text()
    steps = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())["jobs"]["tests"]["steps"]
    there = [step["run"] for step in steps if "run" in step]
    assert there[0] == ".ci/run"
    windows = [line.removeprefix("uv run --all-extras ") for line in there[1].splitlines()[1:]]
    assert windows == ["pytest", *re.findall(r"^\.venv/bin/(ruff .*)$", here, flags=re.MULTILINE)]
    assert "make test\n" in here


def test_the_devcontainer_sets_up_what_make_sets_up():
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    assert re.search(
        rf"^{re.escape(container['postCreateCommand'].removeprefix('make '))}:",
        (ROOT / "Makefile").read_text(),
        re.MULTILINE,
    )
    assert (ROOT / ".devcontainer" / container["build"]["dockerfile"]).is_file()
