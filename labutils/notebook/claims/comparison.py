"""Claims as data: which banked runs are compared, in what they may differ, and by how much they should."""

import inspect
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import pandas as pd

from labutils.errors import SettingError, UnknownSetting
from labutils.experiments.configs import parse_yaml
from labutils.experiments.results import SEEDS, STARTS, load_results, setting_types, with_all_settings
from labutils.notebook.claims.statistics import Difference, difference
from labutils.notebook.finished import check_finished
from labutils.notebook.plots.selection import as_text, matching

FOLDER = Path(__file__).parent
UNITS = {"loss": ("nats", 1.0), "seconds": ("s", 1.0), "top1": ("points", 100.0), "accuracy": ("points", 100.0)}


@dataclass(frozen=True)
class Comparison:
    """A claim that one kind of run has a larger figure than another, in every setting that it names.

    Attributes:
        claim: the sentence.
        bank: the tables of data/results that hold the runs.
        first: settings of the runs whose figure is the larger one; or a list of such, each of which the claim is about.
        second: settings of the others; or the number that the first ones are above.
        where: settings of both.
        over: values of further settings, over all of whose combinations the claim is made.
        differ: settings that differ as well and that the claim names, beside those of first and second.
        measured: the figure: a column of the tables.
        by: the first mean is larger by more than this.
        within: the means differ by less than this instead.
        headline: whether `labutils verify` trains the runs anew.
    """

    claim: str
    bank: tuple[str, ...]
    first: Mapping[str, object] | Sequence[Mapping[str, object]]
    second: Mapping[str, object] | float
    where: Mapping[str, object] = field(default_factory=dict)
    over: Mapping[str, Sequence] = field(default_factory=dict)
    differ: tuple[str, ...] = ()
    measured: str = "test_top1"
    by: float = 0.0
    within: float | None = None
    headline: bool = False

    @property
    def unit(self) -> tuple[str, float]:
        """What the figure is given in, and by what it is multiplied for that."""
        return next((unit for ending, unit in UNITS.items() if self.measured.endswith(ending)), ("", 1.0))

    def pairs(self) -> Iterator[tuple[dict, dict | float]]:
        """The settings of both sides, for each combination that the claim is made over."""
        firsts = [self.first] if isinstance(self.first, Mapping) else self.first
        for first, *values in itertools.product(firsts, *self.over.values()):
            shared = {**self.where, **dict(zip(self.over, values, strict=True))}
            second = {**shared, **self.second} if isinstance(self.second, Mapping) else self.second
            yield {**shared, **first}, second

    def compare(self, table: pd.DataFrame | None = None) -> list[Difference]:
        """The difference for each pair of sides.

        Args:
            table: the runs; without it those of the bank.

        Raises:
            SettingError: there are no such runs, or two sides differ in settings that the claim does not name.
        """
        table = self.table() if table is None else with_all_settings(table)
        found = []
        for first, second in self.pairs():
            sides = [self.runs(table, first)]
            if isinstance(second, Mapping):
                sides.append(self.runs(table, second))
                self.check_factors(*sides, named={*first, *second, *self.differ})
            values = [side[self.measured].to_numpy() for side in sides]
            other = values[1] if len(values) == 2 else second
            found.append(difference(values[0], other, by=self.by, within=self.within))
        return found

    def table(self) -> pd.DataFrame:
        """All runs of the banks it is about; one that several banks have counts once."""
        tables = pd.concat([with_all_settings(load_results(name)) for name in self.bank], ignore_index=True)
        return tables.drop_duplicates("run", ignore_index=True)

    def runs(self, table: pd.DataFrame, settings: Mapping[str, object]) -> pd.DataFrame:
        """The runs of one side, which differ in nothing but their seeds."""
        runs = matching(table, settings)
        if runs.empty:
            raise SettingError(
                "claim", f"{self.claim}: no run of {', '.join(self.bank)} with {settings}", "banked runs"
            )
        check_finished(runs, self.measured)
        mixed = [name for name in compared_settings(runs) if name not in SEEDS and len(values_of(runs, name)) > 1]
        if mixed:
            given = f"{self.claim}: runs with {settings} that differ in {', '.join(mixed)} as well"
            raise SettingError("claim", given, "settings that leave nothing but seeds open")
        return runs

    def check_factors(self, first: pd.DataFrame, second: pd.DataFrame, *, named: set[str]) -> None:
        """Raise SettingError where two sides differ in settings that the claim does not name."""
        for start, owner in STARTS.items():
            if start in named and "none" in values_of(first, start) | values_of(second, start):
                named |= set(inspect.signature(owner).parameters)
        confounded = [
            name
            for name in compared_settings(first)
            if name not in named and name not in SEEDS and values_of(first, name) != values_of(second, name)
        ]
        if confounded:
            given = f"{self.claim}: its sides differ in {', '.join(confounded)} as well"
            raise SettingError("claim", given, "sides that differ in what the claim names, and in nothing else")


def compared_settings(runs: pd.DataFrame) -> list[str]:
    """The columns that are settings, and the title of the data."""
    return [name for name in runs if name in setting_types() or name == "data"]


def values_of(runs: pd.DataFrame, name: str) -> set[str]:
    """The values that a setting has among runs, each in one form."""
    return set(runs[name].map(as_text))


def notebooks_with_claims() -> list[str]:
    """The notebooks that have a YAML file of claims, such as "01"."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read_comparisons(notebook: str) -> list[Comparison]:
    """The claims of a notebook, such as "01", that compare banked runs: those of its YAML file beside this module.

    Raises:
        SettingError: there are none, or a claim has a part that does not exist.
    """
    path = FOLDER / f"{notebook}.yaml"
    if not path.is_file():
        raise UnknownSetting(notebook, notebooks_with_claims())
    contents = parse_yaml(path.read_text(encoding="utf-8"))
    parts = [part.name for part in fields(Comparison)]
    comparisons = []
    for claim in contents["claims"]:
        for part in claim:
            if part not in parts:
                raise UnknownSetting(part, parts)
        bank = claim["bank"]
        listed = {"bank": tuple(bank if isinstance(bank, list) else [bank]), "differ": tuple(claim.get("differ", ()))}
        comparisons.append(Comparison(**claim | listed))
    return comparisons
