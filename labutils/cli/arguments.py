"""What the command line understands: its commands and options, and settings as `--NAME VALUE`."""

import argparse
import inspect
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from labutils.data.loading import NAMES, SOURCES
from labutils.errors import SettingError
from labutils.experiments.configs import config_names, parse_yaml
from labutils.experiments.settings import (
    PROFILES,
    Experiment,
    every_setting,
    full_name,
    known_settings,
    setting_owners,
)
from labutils.models.building import MODELS

SAVED = {  # what of a sweep can be banked: the end of its file's name, and what the file holds
    "results": ("", "one row per run"),
    "epochs": ("_epochs", "one row per epoch of each run"),
    "gradients": ("_gradients", "one row per layer and epoch, of measured gradients"),
}
JOBS_HELP = (
    "processes (default, and at most: one per GPU, without a GPU one per core); 1: this one, with all its threads"
)


class Parser(argparse.ArgumentParser):
    """Names what is wrong in one line, without the usage."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"labutils: {' '.join(message.split())}\n")


def make_parser() -> Parser:
    """The parser of all commands; settings of `run`, `sweep` and `ship` are what it leaves over."""
    parser = Parser(prog="labutils", description="The deep-learning labs from the command line.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("doctor", help="check this machine and say what to fix")
    data = commands.add_parser("data", help="fetch the data sets and say what is there")
    data.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(NAMES)}; without one, all of them")
    data.add_argument("--source", default="auto", help=f"one of {', '.join(SOURCES)} (default: auto)")
    data.add_argument("--root", help="the data folder (default: $LABUTILS_DATA, else data/)")

    run = add_experiment(commands, "run", "run one experiment, or load it where it has been run before")
    run.add_argument("--force", action="store_true", help="train anew even if the run is there")
    sweep = add_experiment(commands, "sweep", "run every combination of a config's sweep section")
    sweep.add_argument("--jobs", type=int, help=JOBS_HELP)
    sweep.add_argument("--cluster", help="run on a Ray cluster: auto, or ray://HOST:PORT")
    for table, (ending, what) in SAVED.items():
        sweep.add_argument(f"--save-{table}", action="store_true", help=f"write data/results/NAME{ending}.csv: {what}")
    add_kept_name(sweep)

    report = commands.add_parser("report", help="a sweep's results as a table (mean ± sd, n) and figures")
    report.add_argument("--to", type=Path, help="the folder of its files (default: build/reports/NAME)")
    export = commands.add_parser("export", help="run a config, and keep its trained network in data/checkpoints")
    add_kept_name(export)
    for command in (report, export):
        command.add_argument("config", help=f"a YAML file, or one of: {', '.join(config_names())}")
        add_profile(command)

    add_experiment(commands, "ship", "keep a run in data/runs, from where it is loaded whatever data are here")
    verify = commands.add_parser(
        "verify", help="train the runs behind the headline claims anew, on the data that are here"
    )
    verify.add_argument("notebooks", nargs="*", metavar="NOTEBOOK", help="such as 01; without one, all of them")
    verify.add_argument("--jobs", type=int, help=JOBS_HELP)
    verify.add_argument("--dry-run", action="store_true", help="say what would be trained, and how long it would take")
    add_profile(verify)
    commands.add_parser("convert", help="give runs and results from before a change of the course their new names")
    course = commands.add_parser("course", help="execute all notebooks in order, and write the course's site")
    course.add_argument("--profile", choices=PROFILES, default="laptop", help="(default: laptop)")
    course.add_argument("--to", type=Path, default=Path("build"), help="the folder of their copies (default: build)")
    course.add_argument("--committed", action="store_true", help="write the site as committed, and execute nothing")
    student = commands.add_parser("student", help="copies of the notebooks without solutions or outputs, to hand out")
    student.add_argument(
        "--to", type=Path, default=Path("build/student"), help="the folder of the copies (default: build/student)"
    )
    grade = commands.add_parser("grade", help="run the checks of handed-in notebooks anew, and write a table")
    grade.add_argument("notebooks", nargs="+", type=Path, metavar="NOTEBOOK", help="a file, or a folder of such")
    to_help = "a .csv file, or Gradescope's results.json (default: grades.csv)"
    grade.add_argument("--to", type=Path, default=Path("grades.csv"), help=to_help)
    grade.add_argument("--timeout", type=float, default=600, help="seconds a notebook may take (default: 600)")
    grade.add_argument("--memory", type=float, default=4, help="GiB that each process may have (default: 4)")
    grade.add_argument("--jobs", type=int, default=1, help="notebooks at a time (default: 1)")
    grade.add_argument("--profile", choices=PROFILES, default="smoke", help="(default: smoke)")
    return parser


def examples(name: str, config: str) -> str:
    """Commands to copy, each with what it does, in two columns."""
    commands = {
        f"labutils {name} {config}": "the config as it is",
        f"labutils {name} {config} --model.depth 10 --epochs 3": "other settings; a short name is enough",
        f"labutils {name} {config} --profile smoke": "seconds, on built-in data",
        f"labutils {name} my_experiment.yaml": "a config file of your own",
        f"labutils {name} {config} --help": "every setting of this config, with its value",
    }
    width = max(map(len, commands))
    return "examples:\n" + "".join(f"  {command:<{width}}  {what}\n" for command, what in commands.items())


def add_experiment(commands: argparse._SubParsersAction, name: str, summary: str) -> Parser:
    """Add a command that takes a config and settings, and whose help after a config lists its settings."""
    parser = commands.add_parser(
        name,
        help=summary,
        usage=f"labutils {name} CONFIG [options] [--SETTING VALUE ...]",
        description=f"{summary[0].upper()}{summary[1:]}. Values are written as in YAML: null, true, 0.1, [2, 2, 2, 2].",
        epilog=examples(name, "mlp_residual" if name == "sweep" else "mlp_mnist"),
        add_help=False,
    )
    parser.add_argument("config", nargs="?", help=f"a YAML file, or one of: {', '.join(config_names())}")
    add_profile(parser)
    parser.add_argument("-h", "--help", action="store_true", help="this help; after a config, its settings, too")
    parser.set_defaults(parser=parser)
    return parser


def add_profile(parser: Parser) -> None:
    parser.add_argument("--profile", help=f"{', '.join(PROFILES)} (default: $LABUTILS_PROFILE, else laptop)")


def add_kept_name(parser: Parser) -> None:
    parser.add_argument("--as", dest="kept_as", metavar="NAME", help="keep under this name, which no course file has")


def read_settings(config: str, profile: str | None, words: Sequence[str]) -> dict[str, object]:
    """`--model.depth 10 --lr=0.1` as overrides of a config, by their full names.

    Raises:
        SettingError: no such setting, a setting without a value, or a value that is not YAML.
    """
    words, given = list(words), []
    while words:
        name, equals, text = words.pop(0).partition("=")
        if not name.startswith("--"):
            raise SettingError("argument", name, "settings as --NAME VALUE")
        name = name.removeprefix("--")
        if not equals:
            if not words:
                raise SettingError(name, "nothing", "a value after its name")
            text = words.pop(0)
        given.append((name, text))
    kinds = [read_value(name, text) for name, text in given if name in ("kind", "model.kind")]
    known = known_settings(kinds[-1] if kinds else Experiment.load(config, profile=profile).model["kind"])
    # The names first, so that one that does not exist is not blamed on its value.
    named = [(full_name(name, known), text) for name, text in given]
    return {name: read_value(name, text) for name, text in named}


def read_value(name: str, text: str) -> object:
    """What a word after a setting's name says, as in a config file."""
    try:
        return parse_yaml(text)
    except ValueError as error:
        raise SettingError(name, text, f"a value as YAML writes it ({error})") from None


def show_help(parser: Parser, experiment: Experiment | None) -> None:
    """Print the help of `run` or `sweep`, and all settings of an experiment with their values."""
    if experiment is not None:
        values = every_setting(experiment)
        for section, owner in setting_owners(experiment.model["kind"]).items():
            group = parser.add_argument_group(f"{section}, of {experiment.name} at the {experiment.profile} profile")
            texts = {"kind": f"the model: {', '.join(MODELS)}."} | argument_texts(owner)
            for name in (name for name in values if name.startswith(f"{section}.")):
                bare = name.partition(".")[2]
                text = f"{texts.get(bare, '')} (value: {json.dumps(values[name], default=str)})".strip()
                group.add_argument(f"--{name}", metavar="VALUE", help=text.replace("%", "%%"))
    parser.print_help()


def argument_texts(owner: Callable) -> dict[str, str]:
    """What the docstrings of a function, or of a class and its bases, say of each argument under "Args:"."""
    texts: dict[str, str] = {}
    for documented in reversed(getattr(owner, "__mro__", (owner,))):
        section = (inspect.getdoc(documented) or "").partition("\nArgs:\n")[2].partition("\n\n")[0]
        for names, text in re.findall(r"^ {4}(\w[^:\n]*): (.*(?:\n {8}.*)*)", section, re.MULTILINE):
            for name in names.split(", "):
                texts.setdefault(name, " ".join(text.split()))
    return texts
