"""The command line: labutils doctor | data | run | sweep | report | export | ship | verify |
convert | course | student | grade."""

import argparse
import itertools
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from labutils.cli.arguments import SAVED, make_parser, read_settings, show_help
from labutils.data.loading import NAMES, load_data
from labutils.errors import SettingError
from labutils.experiments import results, sweeps
from labutils.experiments.configs import config_names
from labutils.experiments.running import check_real, load_experiment_data, run, run_name, ship_run
from labutils.experiments.settings import Experiment, grid
from labutils.methods.pretrained import save_pretrained
from labutils.training.history import Interrupted

if TYPE_CHECKING:
    import pandas as pd

BANKED_PROFILES = ("laptop", "full")  # at which the course's own results and checkpoints are made
NOT_OF_CONFIGS = ("cnn_surfaces", "cnn_backbone_rescaled")  # what else data/ holds of the course's own
KEPT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status: 0 done, 1 failed, 2 a wrong argument, 130 interrupted."""
    parser = make_parser()
    options, rest = parser.parse_known_args(arguments)
    with_settings = options.command in ("run", "sweep", "ship")
    if rest and not with_settings:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        options.settings = settings_of(options, rest) if with_settings else {}
        if with_settings and options.help:
            show_help(options.parser, options.config and Experiment.load(options.config, **options.settings))
            status = 0
        else:
            status = COMMANDS[options.command](options) or 0
        sys.stdout.flush()  # here, where an error can be told
    except SettingError as error:
        return complain(error, 2)
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, ValueError, ArithmeticError, RuntimeError, MemoryError) as error:
        return complain(str(error) or type(error).__name__, 1)
    except KeyboardInterrupt:
        goes_on = options.command == "sweep" or (options.command == "run" and not options.force)
        kept = "; what was whole is kept, and the same command goes on from there" * goes_on
        return complain(f"interrupted{kept}", 130)
    return status


def complain(what: object, status: int) -> int:
    """Say in one line what is wrong; the exit status."""
    print("labutils:", " ".join(str(what).split()), file=sys.stderr)
    return status


def doctor(options: argparse.Namespace) -> None:
    from labutils.cli.doctor import examine

    for check in examine():
        print(check, flush=True)


def data(options: argparse.Namespace) -> None:
    for name in options.names or NAMES:
        print(f"{name}: {load_data(name, source=options.source, root=options.root, device='cpu')}")


def run_one(options: argparse.Namespace) -> None:
    try:
        finished = run(Experiment.load(options.config, **options.settings), force=options.force)
    except Interrupted as interrupt:
        if interrupt.history.rows:
            print(interrupt.history.frame.round(4).to_string(index=False))
        raise
    print(finished.history.frame.round(4).to_string(index=False))
    print(f"{finished}\nkept in {finished.path}")


def run_sweep(options: argparse.Namespace) -> int | None:
    experiments = grid(options.config, **options.settings)
    wanted = [what for what in SAVED if getattr(options, f"save_{what}")]
    if wanted:  # asked before the work, not after it
        name = kept_name(options, experiments[0], changed=options.settings.keys() > {"profile"})
        if "gradients" in wanted:
            results.check_gradients(experiments)
    if wanted == ["results"]:
        return complete_bank(options, name, experiments)
    table = sweeps.sweep(experiments, jobs=options.jobs, cluster=options.cluster)
    if report_failures(table):
        return 1
    tables = {
        "results": lambda: table,
        "epochs": lambda: results.histories(experiments),
        "gradients": lambda: results.gradients(experiments),
    }
    for what in wanted:
        print(f"banked in {results.save_results(name + SAVED[what][0], tables[what]())}")


def complete_bank(options: argparse.Namespace, name: str, experiments: list[Experiment]) -> int:
    """Train those of a sweep's runs that no table of the bank has, and bank them all; those so far if interrupted.

    So a sweep goes on where another machine has left it: its store of runs does not come along, but the bank does.
    """
    known = results.banked_rows()
    left = [experiment for experiment in experiments if run_name(experiment) not in known]
    print(f"{len(experiments) - len(left)} of {len(experiments)} runs are in the bank")
    try:
        failed = bool(left) and report_failures(sweeps.sweep(left, jobs=options.jobs, cluster=options.cluster))
    finally:
        print(f"banked in {results.save_sweep(name, experiments) or 'nothing: no run is whole'}")
    return int(failed)


def report_failures(table: "pd.DataFrame") -> bool:
    """Say how many of a sweep's runs are in the store, and what became of the others, if there are any."""
    failed = table[table["error"].notna()] if "error" in table else table.iloc[:0]
    print(f"{len(table) - len(failed)} of {len(table)} runs are in the store")
    if len(failed):
        print(failed[[*results.settings_that_vary(table), "error"]].to_string(index=False), file=sys.stderr)
    return bool(len(failed))


def settings_of(options: argparse.Namespace, rest: Sequence[str]) -> dict[str, object]:
    """What the command line changes of a config: its profile and its settings."""
    if not options.config:
        if not options.help:
            raise SettingError("config", None, f"a YAML file, or one of {', '.join(config_names())}")
        return {}
    return {"profile": options.profile, **read_settings(options.config, options.profile, rest)}


def kept_name(options: argparse.Namespace, experiment: Experiment, *, changed: bool = False) -> str:
    """The name under which results or weights go into data/, which holds the course's own.

    Raises:
        SettingError: the name is the course's, and what is to be kept is not the course's config as it stands, trained
            on the data that it names.
    """
    if options.kept_as is None:
        if options.config in config_names() and experiment.profile in BANKED_PROFILES and not changed:
            check_real(experiment)
            return experiment.name
        given = f"{options.config} at the {experiment.profile} profile{', with other settings' if changed else ''}"
        allowed = (
            f"a config of the course as it is, at the profile {' or '.join(BANKED_PROFILES)}; --as NAME keeps others"
        )
        raise SettingError("config", given, allowed)
    taken = {*NOT_OF_CONFIGS, *(f"{name}{ending}" for name in config_names() for ending, _ in SAVED.values())}
    if not KEPT_NAME.fullmatch(options.kept_as) or options.kept_as.casefold() in taken:
        raise SettingError(
            "as", options.kept_as, "a name of letters, digits, - and _ that is not that of a config of the course"
        )
    return options.kept_as


def write_report(options: argparse.Namespace) -> None:
    from labutils.cli.report import readable, report

    folder = options.to or Path("build", "reports", Path(options.config).stem)
    summary, files = report(options.config, folder, profile=options.profile)
    print(readable(summary).to_string(index=False))
    print(*files, sep="\n")


def export(options: argparse.Namespace) -> None:
    experiment = Experiment.load(options.config, profile=options.profile)
    name = kept_name(options, experiment)
    finished = run(experiment, shipped=False)  # those have half precision
    path = save_pretrained(
        name,
        finished.model,
        load_experiment_data(experiment),
        settings=experiment.settings(),
        metrics=finished.metrics,
    )
    print(f"{finished}\nkept in {path}")


def verify(options: argparse.Namespace) -> None:
    from labutils.cli.verify import verify
    from labutils.notebook.claims import notebooks_with_claims

    for notebook in options.notebooks or notebooks_with_claims():
        lines = verify(notebook, profile=options.profile, jobs=options.jobs, dry_run=options.dry_run)
        for line in lines:
            print(line, flush=True)


def ship(options: argparse.Namespace) -> None:
    print(f"kept in {ship_run(Experiment.load(options.config, **options.settings))}")


def convert(options: argparse.Namespace) -> None:
    from labutils.experiments.conversion import convert_bank, convert_store

    for name, outcome in itertools.chain(convert_store(), convert_bank()):
        print(f"{name}: {outcome}", flush=True)


def course(options: argparse.Namespace) -> int | None:
    from labutils.cli.course import execute_course, publish_committed

    try:
        for path in (
            [publish_committed(options.to)] if options.committed else execute_course(options.profile, options.to)
        ):
            print(path, flush=True)
    except ModuleNotFoundError as error:
        return complain(f"{error}: the site needs the extra `site` (pip install 'labutils[site]')", 1)


def student(options: argparse.Namespace) -> None:
    from labutils.cli.course import write_student_copies

    print(*write_student_copies(options.to), sep="\n")


def grade(options: argparse.Namespace) -> None:
    from labutils.cli.grade import grade

    given = {"seconds": options.timeout, "memory": options.memory, "jobs": options.jobs, "profile": options.profile}
    for graded in grade(options.notebooks, options.to, **given):
        print(graded, flush=True)
    print(f"written to {options.to}")


COMMANDS = {
    "doctor": doctor,
    "data": data,
    "run": run_one,
    "sweep": run_sweep,
    "report": write_report,
    "export": export,
    "ship": ship,
    "verify": verify,
    "convert": convert,
    "course": course,
    "student": student,
    "grade": grade,
}
