"""The command line: labutils doctor | data | run | sweep | report | export | course | student."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from labutils.backbones import save_backbone
from labutils.data import NAMES, SOURCES, load_data
from labutils.errors import SettingError
from labutils.experiment import (
    PROFILES,
    Experiment,
    config_names,
    full_name,
    grid,
    known_settings,
    settings_parser,
)
from labutils.results import save_results, settings_that_vary
from labutils.runs import load_experiment_data, run
from labutils.sweeps import gradients, histories, sweep
from labutils.training import Diverged

if TYPE_CHECKING:
    import pandas as pd

RUN_EXAMPLES = """examples:
  labutils run mlp_mnist                               the config as it is
  labutils run mlp_mnist --model.depth 10 --epochs 3   other settings; a bare name does where it is clear
  labutils run mlp_mnist --profile smoke               seconds, on built-in data
  labutils run my_experiment.yaml                      a config file of your own
  labutils run mlp_mnist --help                        every setting of this config, with its value
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status: 0 done, 1 failed, 2 a wrong argument, 130 interrupted."""
    parser = argparse.ArgumentParser(
        prog="labutils", description="The deep-learning labs from the command line.", allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    commands.add_parser("doctor", help="look over this machine and say what to mend")

    fetch = commands.add_parser("data", help="fetch the data sets and say what is there")
    fetch.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(NAMES)}; without one, all of them")
    fetch.add_argument("--source", default="auto", help=f"one of {', '.join(SOURCES)} (default: auto)")
    fetch.add_argument("--root", help="the data folder (default: $LABUTILS_DATA, else data/)")

    for command, summary in (
        ("run", "run one experiment, or load it where it has been run before"),
        ("sweep", "run every combination of a config's sweep section"),
    ):
        sub = commands.add_parser(
            command,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            epilog=RUN_EXAMPLES.replace("labutils run", f"labutils {command}"),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            add_help=False,
            allow_abbrev=False,
        )
        sub.add_argument("config", nargs="?", help=f"a YAML file, or one of: {', '.join(config_names())}")
        sub.add_argument("--profile", help=f"{', '.join(PROFILES)} (default: $LABUTILS_PROFILE, else laptop)")
        sub.add_argument("-h", "--help", action="store_true", help="this help; after a config, its settings")
        if command == "run":
            sub.add_argument("--force", action="store_true", help="train anew even if the run is there")
        else:
            sub.add_argument("--jobs", type=int, help="processes, of one thread each (default, and most: one a core)")
            sub.add_argument("--cluster", help="run on a Ray cluster: auto, or ray://HOST:PORT")
            for option, what in (
                ("--save-results", "data/results/NAME.csv for the course's notebooks: a row a run"),
                ("--save-epochs", "data/results/NAME_epochs.csv: a row an epoch of each run"),
                ("--save-gradients", "data/results/NAME_gradients.csv: a row a layer and epoch, of logged gradients"),
            ):
                sub.add_argument(option, action="store_true", help=f"write {what}")
        sub.set_defaults(show_help=sub.print_help)

    tell = commands.add_parser("report", help="a sweep's results as a table (mean ± sd, n) and figures")
    tell.add_argument("config", help=f"a YAML file, or one of: {', '.join(config_names())}")
    tell.add_argument("--profile", help=f"{', '.join(PROFILES)} (default: $LABUTILS_PROFILE, else laptop)")
    tell.add_argument("--to", type=Path, help="the folder of its files (default: build/reports/NAME)")

    keep = commands.add_parser("export", help="run a config, and keep its trained network in data/checkpoints")
    keep.add_argument("config", help=f"a YAML file, or one of: {', '.join(config_names())}")
    keep.add_argument("--profile", help=f"{', '.join(PROFILES)} (default: $LABUTILS_PROFILE, else laptop)")

    course = commands.add_parser("course", help="execute all notebooks in order, and write the course's site")
    course.add_argument("--profile", choices=PROFILES, default="laptop", help="(default: laptop)")
    course.add_argument("--to", type=Path, default=Path("build"), help="the folder to leave them in (default: build)")

    student = commands.add_parser("student", help="copies of the notebooks without solutions or outputs, to hand out")
    student.add_argument(
        "--to", type=Path, default=Path("build/student"), help="the folder to leave them in (default: build/student)"
    )

    options, rest = parser.parse_known_args(arguments)
    if rest and options.command not in ("run", "sweep"):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        return COMMANDS[options.command](options, rest)
    except SettingError as error:
        print(f"labutils: {error}", file=sys.stderr)
        return 2
    except (OSError, ValueError, Diverged) as error:
        print(f"labutils: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("labutils: interrupted", file=sys.stderr)
        return 130


def doctor(options: argparse.Namespace, rest: Sequence[str]) -> int:
    from labutils.doctor import examine

    for check in examine():
        print(check)
    return 0


def data(options: argparse.Namespace, rest: Sequence[str]) -> int:
    for name in options.names or NAMES:
        print(f"{name}: {load_data(name, source=options.source, root=options.root, device='cpu')}")
    return 0


def run_one(options: argparse.Namespace, rest: Sequence[str]) -> int:
    if not options.config or options.help:
        return show_help(options)
    experiment = Experiment.load(
        options.config, profile=options.profile, **read_settings(options.config, options.profile, rest)
    )
    finished = run(experiment, force=options.force)
    print(finished.history.frame.round(4).to_string(index=False))
    print(finished)
    print(f"kept in {finished.path}" if finished.path else "interrupted, so not kept")
    return 130 if finished.history.interrupted else 0


def run_sweep(options: argparse.Namespace, rest: Sequence[str]) -> int:
    if not options.config or options.help:
        return show_help(options)
    experiments = grid(options.config, profile=options.profile, **read_settings(options.config, options.profile, rest))
    results = sweep(experiments, jobs=options.jobs, cluster=options.cluster)
    failed = results[results["error"].notna()] if "error" in results else results.iloc[:0]
    print(f"{len(results) - len(failed)} of {len(results)} runs are in the store")
    if len(failed):
        print(failed[[*settings_that_vary(results), "error"]].to_string(index=False), file=sys.stderr)
        return 1
    name = experiments[0].name
    for wanted, banked, table in (
        (options.save_results, name, lambda: results),
        (options.save_epochs, f"{name}_epochs", lambda: histories(experiments)),
        (options.save_gradients, f"{name}_gradients", lambda: gradients(experiments)),
    ):
        if wanted:
            print(f"banked in {save_results(banked, table())}")
    return 0


def tell(options: argparse.Namespace, rest: Sequence[str]) -> int:
    from labutils.report import report

    folder = options.to or Path("build", "reports", Path(options.config).stem)
    summary, files = report(options.config, folder, profile=options.profile)
    print(readable(summary).to_string(index=False))
    print(*files, sep="\n")
    return 0


def readable(summary: "pd.DataFrame") -> "pd.DataFrame":
    """A report's summary with mean ± sd in one column each, accuracies in per cent."""
    table = summary[[name for name in summary if not name.endswith(("_mean", "_std"))]].copy()
    for name in (column.removesuffix("_mean") for column in summary if column.endswith("_mean")):
        unit, factor = ("s", 1) if name == "seconds" else ("%", 100)
        mean, sd = factor * summary[f"{name}_mean"], factor * summary[f"{name}_std"]
        table[f"{name} ({unit})"] = mean.map("{:.2f}".format) + sd.map(" ± {:.2f}".format)
    return table


def export(options: argparse.Namespace, rest: Sequence[str]) -> int:
    finished = run(Experiment.load(options.config, profile=options.profile))
    if finished.history.interrupted:
        return 130
    experiment = finished.experiment
    data = load_experiment_data(experiment)
    path = save_backbone(
        experiment.name, finished.model, data, settings=experiment.settings(), metrics=finished.metrics
    )
    print(f"{finished}\nkept in {path}")
    return 0


def course(options: argparse.Namespace, rest: Sequence[str]) -> int:
    from labutils.course import execute_course

    for path in execute_course(options.profile, options.to):
        print(path, flush=True)
    return 0


def student(options: argparse.Namespace, rest: Sequence[str]) -> int:
    from labutils.course import write_student_copies

    print(*write_student_copies(options.to), sep="\n")
    return 0


def read_settings(config: str, profile: str | None, words: Sequence[str]) -> dict[str, object]:
    """`--model.depth 10 --lr=0.1` as overrides of a config."""
    known = known_settings(Experiment.load(config, profile=profile).model["kind"])
    words, settings = list(words), {}
    while words:
        name, equals, value = words.pop(0).partition("=")
        if not name.startswith("--"):
            raise SettingError("argument", name, "settings as --NAME VALUE")
        name = full_name(name.removeprefix("--"), known)
        if not equals:
            if not words:
                raise SettingError(name, "nothing", "a value after its name")
            value = words.pop(0)
        settings[name] = yaml.safe_load(value)
    return settings


def show_help(options: argparse.Namespace) -> int:
    """The help of run or sweep; with a config, all its settings and their values."""
    if not options.config:
        options.show_help()
        return 0 if options.help else 2
    experiment = Experiment.load(options.config, profile=options.profile)
    parser = settings_parser(
        experiment.model["kind"],
        prog=f"labutils {options.command} {options.config}",
        usage="%(prog)s [--profile PROFILE] [--SETTING VALUE ...]",
        description=f"The settings of {experiment.name} at the {experiment.profile} profile.",
    )
    settings = experiment.settings()
    del settings["model"]["kind"]
    parser.set_defaults(
        {f"{section}.{name}": value for section, values in settings.items() for name, value in values.items()}
    )
    parser.print_help()
    return 0


COMMANDS = {
    "doctor": doctor,
    "data": data,
    "run": run_one,
    "sweep": run_sweep,
    "report": tell,
    "export": export,
    "course": course,
    "student": student,
}
