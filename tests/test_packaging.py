"""What the set-up files say must agree, the layers must hold, and importing the package must stay cheap."""

import ast
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import labutils as lab
from labutils.cli.arguments import make_parser, read_settings

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DEPENDENCIES = [
    *PROJECT["dependencies"],
    *(line for extra in PROJECT["optional-dependencies"].values() for line in extra),
]
OLDEST_PYTHON = PROJECT["requires-python"].removeprefix(">=")
MAKEFILE = (ROOT / "Makefile").read_text()
WORKFLOW, PAGES = (
    yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text()) for name in ("tests", "pages")
)
README = (ROOT / "README.md").read_text(encoding="utf-8")
# What torch does not load anyway, and what reading a config or making random numbers needs.
LIGHT = {"labutils", "numpy", "tqdm", "yaml"}


def normalised(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def recipe(target):
    """The commands of a target of the Makefile, as they are typed where its environment is active."""
    (lines,) = re.findall(rf"^{re.escape(target)}:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    return [line.strip().replace("$(BIN)/", "").removeprefix("python -m ") for line in lines.splitlines()]


def test_conda_gets_the_locked_versions():
    text = (ROOT / "environment.yml").read_text()
    python, pip, of_pip = yaml.safe_load(text)["dependencies"]
    assert python == f"python={OLDEST_PYTHON}"
    assert pip == "pip"
    assert of_pip == {"pip": ["-r requirements.lock"]}
    (package,) = (line for line in recipe(".venv") if line.endswith("-e ."))
    assert "--no-deps -e .\n" in text
    assert "--no-deps -e ." in package


def test_the_oldest_versions_are_tried_with_the_oldest_python():
    assert f"--python {OLDEST_PYTHON} " in " ".join(recipe(".venv-oldest"))
    assert f"--python-version {OLDEST_PYTHON} " in " ".join(recipe("lock"))
    steps = WORKFLOW["jobs"]["oldest"]["steps"]
    assert steps[-1] == {"run": "make test-oldest"}
    assert steps[-2]["with"] == {"python-version": OLDEST_PYTHON}


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


def test_importing_the_package_costs_little_more_than_importing_torch():
    code = """
import sys, numpy, torch
before = set(sys.modules)
import labutils
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(sorted(name for name in new - sys.stdlib_module_names if not name.startswith("_")))
"""
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert set(ast.literal_eval(printed)) <= LIGHT


def test_the_command_is_there():
    module, _, function = PROJECT["scripts"]["labutils"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def check_layers(folder):
    """What import-linter says of the package in a folder, by the contract in its pyproject.toml."""
    command = [shutil.which("lint-imports", path=Path(sys.executable).parent), "--no-cache"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, encoding="utf-8")


def test_no_layer_imports_from_one_above_it():
    checked = check_layers(ROOT)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize(
    ("name", "source", "said"),
    [
        ("errors.py", "import labutils.files", "labutils.errors is not allowed to import labutils.files"),
        (
            "data/loading.py",
            "from labutils.models import mlp",
            "labutils.data is not allowed to import",
        ),
        ("training/loop.py", "import labutils", "labutils.training is not allowed to import labutils.methods"),
        ("notebook/claims.py", "def f():\n    from labutils.cli import main", "labutils.notebook is not allowed"),
        ("stray.py", "", "labutils.stray"),
    ],
    ids=["one layer up", "from a module", "the whole package", "in a function", "a module without a layer"],
)
def test_an_import_from_a_layer_above_is_caught(tmp_path, name, source, said):
    shutil.copytree(ROOT / "labutils", tmp_path / "labutils", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / "labutils" / name).open("a", encoding="utf-8") as module:
        module.write(f"\n\n{source}\n")
    checked = check_layers(tmp_path)
    assert checked.returncode == 1
    assert said in checked.stdout


DOCUMENTS = ("README.md", "docs/command_line.md", "docs/teaching.md", "data/README.md")


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
    options, rest = make_parser().parse_known_args(words)
    assert options.command in ("run", "sweep") or not rest
    settings = read_settings(options.config, options.profile, rest)
    lab.Experiment.load(options.config, profile=options.profile, **settings)


def test_ci_elsewhere_runs_what_ci_here_runs():
    here = re.findall(r"^step make ([\w-]+)$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert here == ["test", "test-slow", "lint"]
    there = [step["run"] for step in WORKFLOW["jobs"]["tests"]["steps"] if "run" in step]
    assert there[0] == ".ci/run"
    windows = [line.removeprefix("uv run --all-extras ") for line in there[1].splitlines()[1:]]
    assert windows == [command for target in here for command in recipe(target)]


def test_the_devcontainer_sets_up_what_make_sets_up():
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    assert recipe(container["postCreateCommand"].removeprefix("make "))
    image = (ROOT / ".devcontainer" / container["build"]["dockerfile"]).read_text()
    assert f"FROM python:{OLDEST_PYTHON}-" in image


def test_the_citation_says_what_the_project_is():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "authors"} <= citation.keys()
    assert {name: citation[name] for name in ("version", "license")} == {
        name: PROJECT[name] for name in ("version", "license")
    }
    assert README.startswith(f"# {citation['title']}\n")
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith(f"{PROJECT['license']} License\n")


def test_the_site_is_published_as_it_is_made_here_with_no_rights_but_those_it_needs():
    build, deploy = PAGES["jobs"]["build"], PAGES["jobs"]["deploy"]
    (command,) = (step["run"] for step in build["steps"] if "run" in step)
    assert "labutils course --committed --to build" in recipe(command.removeprefix("make "))
    assert build["steps"][-1]["with"] == {"path": "build/site"}
    assert PAGES["permissions"] == {"contents": "read"}
    assert "permissions" not in build
    assert deploy["permissions"] == {"pages": "write", "id-token": "write"}


def links_to_the_repository(folder):
    """All that a README and a citation say of where the repository and its site are."""
    text = "".join((folder / name).read_text(encoding="utf-8") for name in ("README.md", "CITATION.cff"))
    return re.findall(r"(?:codespaces\.new|/v2/gh|/github|github\.com)/[\w.-]+/[\w.-]+|[\w.-]+github\.io/[\w.-]*", text)


@pytest.mark.skipif(not shutil.which("make"), reason="no make")
def test_badges_lead_to_the_repository(tmp_path):
    for name in ("README.md", "CITATION.cff", "Makefile"):
        shutil.copy(ROOT / name, tmp_path)

    def badges(repository):
        return subprocess.run(
            ["make", "badges", f"REPOSITORY={repository}"], cwd=tmp_path, capture_output=True, text=True
        )

    before = links_to_the_repository(tmp_path)
    assert len(before) >= 7
    for repository in ("data/results", "some-one/labs.2", "some-one/labs.2"):  # the first is a folder's name, too
        assert badges(repository).returncode == 0
        owner, name = repository.split("/")
        links = links_to_the_repository(tmp_path)
        assert len(links) == len(before)
        for link in set(links) - {"github.com/codespaces/badge.svg"}:
            assert link.endswith((f"/{repository}", f"{owner}.github.io/{name}")), link
    for refused in ("", "labs", "https://github.com/some-one/labs", "some one/labs", "a/..", "a/b|c"):
        said = badges(refused)
        assert said.returncode == 2
        assert said.stderr.splitlines()[0] == f"badges: REPOSITORY is '{refused}', and has to be owner/name"
    assert badges("OWNER/REPOSITORY").returncode == 0
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", "CITATION.cff", "Makefile"}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Colab's shell is a POSIX one")
@pytest.mark.skipif(not (ROOT / ".git").exists() or not shutil.which("git"), reason="not a clone that can be cloned")
def test_the_colab_cell_sets_up_a_plain_environment(tmp_path, online):
    """What the README gives as Colab's first cell, in an environment with nothing but pip; the clone is of this one.

    In Python 3.12, which Colab has, where there is one; else in the Python at hand.
    """
    (cell,) = re.findall(r"`!(git clone [^`]+)`", README)
    cell = re.sub(r"https://github\.com/\S+", str(ROOT), cell)
    candidates = [python for python in ("python3.12", sys.executable) if shutil.which(python)]
    python = next(python for python in candidates if not subprocess.run([python, "--version"]).returncode)
    subprocess.run([python, "-m", "venv", tmp_path / "plain"], check=True)
    path = {"PATH": f"{tmp_path / 'plain' / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    offline = dict(os.environ)
    for command, environment in ((cell, online), ("labutils run mlp_mnist", offline), ("pip show labutils", offline)):
        done = subprocess.run(command, shell=True, cwd=tmp_path, env=environment | path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    assert f"Editable project location: {tmp_path / 'labs'}" in done.stdout
    shutil.rmtree(tmp_path / "plain")  # 6 GB
