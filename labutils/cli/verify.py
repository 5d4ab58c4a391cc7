"""labutils verify: the runs behind a notebook's headline claims, trained anew on the data that are here, and judged."""

from collections.abc import Iterator, Sequence
from itertools import chain

import pandas as pd

from labutils.experiments.results import settings_row, tabulate, with_all_settings
from labutils.experiments.settings import Experiment, grid
from labutils.experiments.sweeps import local_jobs, sweep
from labutils.methods.pretrained import read_record
from labutils.notebook.claims import Claims, Comparison, read_comparisons
from labutils.notebook.plots.selection import matching

NEW_SEEDS = 1_000  # added to the bank's


def verify(notebook: str, *, profile: str | None, jobs: int | None, dry_run: bool) -> Iterator[str]:
    """Judge a notebook's headline claims by runs on the data that are here.

    Args:
        notebook: such as "01".
        profile: as in `Experiment.load`.
        jobs: as in `sweep`.
        dry_run: say what would be trained and how long it would take, and train nothing.

    Yields:
        Lines: first what is to be trained, then claim by claim the bank's figure and the one found here.

    Raises:
        SettingError: there is no such notebook.
    """
    asked = [one for one in read_comparisons(notebook) if one.headline]
    needed = {one.claim: runs_of(one, profile) for one in asked}
    claims = [one for one in asked if needed[one.claim]]
    experiments = list({repr(each.settings()): each for one in claims for each in needed[one.claim]}.values())
    yield f"notebook {notebook}: {len(claims)} headline claims, {len(experiments)} runs{duration(claims, jobs)}"
    for one in asked:
        if one not in claims:
            yield f"left out, because this profile has not the runs it is about: {one.claim}"
    starts = {one.transfer.backbone or one.distillation.teacher for one in experiments}  # a run has one at most
    for start in sorted(starts - {None}):
        yield f"not trained anew: {start}, trained on {read_record(start)['metrics']['data']}"
    if dry_run or not claims:
        return
    table = sweep(experiments, jobs=jobs)
    banked, here = Claims(), Claims()
    for one in claims:
        banked.add_comparison(one)
        here.add_comparison(one, table)
    yield f"data here: {', '.join(table['data'].unique())} ({', '.join(table['source'].unique())})"
    for then, now in zip(banked.cells(), here.cells(), strict=True):
        number, claim, *_ = now
        yield f"{number}. {claim}"
        for where, (_, _, figure, count, p, verdict) in (("bank", then), ("here", now)):
            yield f"     {where}: {figure} ({count}; p {p})  {verdict}"


def runs_of(comparison: Comparison, profile: str | None) -> list[Experiment]:
    """The experiments that a comparison is about at a profile, with seeds that the bank has not.

    An empty list where the profile lacks those of either side.
    """
    experiments = list(chain.from_iterable(grid(name, profile=profile) for name in comparison.bank))
    table = with_all_settings(tabulate([settings_row(each) for each in experiments]))
    found = []
    for sides in comparison.pairs():
        chosen = [matching(table, side).index for side in sides if isinstance(side, dict)]
        if not all(map(len, chosen)):
            return []
        found += chain.from_iterable(chosen)
    return [with_other_seed(experiments[index]) for index in sorted(set(found))]


def with_other_seed(experiment: Experiment) -> Experiment:
    """The experiment drawn anew: with the banked seeds the same data would give the same figures again."""
    by_data = experiment.transfer.backbone is not None and experiment.transfer.method != "fine_tuning"
    section, name = ("data", "seed") if by_data else ("training", "seed")
    return experiment.override(**{f"{section}.{name}": experiment.settings()[section][name] + NEW_SEEDS})


def duration(claims: Sequence[Comparison], jobs: int | None) -> str:
    """How long the banked runs of claims took, in words."""
    runs = pd.concat([rows_of(one) for one in claims]).drop_duplicates("run") if claims else pd.DataFrame()
    if runs.empty:
        return ""
    minutes, count = runs["seconds"].sum() / 60, local_jobs(jobs)
    return f", about {minutes / count:.0f} min (the bank's took {minutes:.0f} min; {count} go at a time)"


def rows_of(comparison: Comparison) -> pd.DataFrame:
    """The banked runs that a comparison is about."""
    table = comparison.table()
    return pd.concat(
        [matching(table, side) for sides in comparison.pairs() for side in sides if isinstance(side, dict)]
    )
