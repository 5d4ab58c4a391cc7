"""Sweeps: many experiments, on all cores of a machine or of a Ray cluster.

The store decides what is left to do: a run that is there is never trained again, and a run's lock keeps all others
away from it. So a sweep that was stopped goes on where it was, several sweeps share their work, and a worker that dies
costs no more than the epoch it was in.
"""

import functools
import os
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING

import torch

from labutils.data.loading import data_root
from labutils.errors import SettingError, check_whole
from labutils.experiments.cluster import WorkersDied, connected, on_cluster
from labutils.experiments.results import failed_row, row, tabulate
from labutils.experiments.running import Busy, identify, kept_run, load_experiment_data, run
from labutils.experiments.settings import Experiment, cost_of
from labutils.experiments.store import StoreError, lock, store_root
from labutils.training.callbacks import progress_bar

if TYPE_CHECKING:
    import pandas as pd
    from filelock import FileLock

PROGRESS_FORMAT = "|{bar:20}| {desc}[{elapsed} gone, {remaining} left]"
FRUITLESS_PASSES = 3  # passes that end with a dead worker and no new run, after which the rest is given up
GPU_POLL_S = 1.0  # how often a worker looks for a free GPU

# A run's identity, its experiment, whether to wait for another process that is training it.
Task = tuple[str, Experiment, bool]
# What has come of a task: the run's identity, and its row; None while another process is training it.
Outcome = tuple[str, dict | None]


class SweepWarning(UserWarning):
    """Workers died, and what they were doing is done again."""


def sweep(
    experiments: Sequence[Experiment], *, jobs: int | None = None, cluster: str | None = None, progress: bool = True
) -> "pd.DataFrame":
    """Run many experiments, several at once, each in one thread of a process of its own.

    A sweep can be stopped at any time, and goes on where it was when it is started again. When it is killed, its
    workers finish the runs they are on and start no others.

    Args:
        experiments: what to run, such as `grid(...)`.
        jobs: how many processes. Without it, and at most, one a GPU where there are any, else one a core; 1 runs
            everything in this process, with all its threads.
        cluster: None for this machine alone; auto for the Ray cluster this machine belongs to; ray://HOST:PORT for
            one elsewhere. All its machines must see the same store and data folders.
        progress: whether to show a progress line.

    Returns:
        A row a run, in the order of the experiments: its name in the store, the settings of its data, model, transfer,
        distillation, measurement and training by their bare names ("none" for None), its best epoch's train_loss and
        train_accuracy, its metrics. A run that failed has its message in the column `error`.

    Raises:
        SettingError: no experiments, or jobs below 1, or a cluster's address of another form.
        ClusterError: no cluster answers at that address.
        StoreError: the store can't be read or written; the runs so far are kept.
        KeyboardInterrupt: at once; the runs so far are kept, and the whole epochs of those in training.
    """
    listed = isinstance(experiments, Sequence) and all(isinstance(one, Experiment) for one in experiments)
    if not listed or not experiments:
        raise SettingError("experiments", experiments, "a list of one Experiment or more, such as grid(...)")
    if jobs is not None:
        check_whole("jobs", jobs, 1)
    with open_workers(jobs, cluster) as work:
        names, rows, left = look_up(experiments)
        costs = {name: cost_of(one.model) * one.training.epochs for name, one in left.items()}
        longest_first = {name: left[name] for name in sorted(left, key=costs.get, reverse=True)}
        with closing(progress_bar(sum(costs.values()), unit="", visible=progress, bar_format=PROGRESS_FORMAT)) as bar:
            bar.smoothing = 0  # the time left from the mean speed so far; that of the last few runs jumps
            states, total = Counter(done=len(rows)), len(rows) + len(left)
            for name, result in train_all(longest_first, work):
                rows[name] = result
                states["failed" if "error" in result else "done"] += 1
                bar.update(costs[name])
                bar.set_description_str(f"{states['done']} of {total} done, {states['failed']} failed ")
    return tabulate([rows[name] for name in names])


def look_up(experiments: Sequence[Experiment]) -> tuple[list[str], dict[str, dict], dict[str, Experiment]]:
    """Each experiment's identity; by identity, the rows of the runs in the store, and the experiments left to do."""
    names, rows, left = [""] * len(experiments), {}, {}
    # Ordered by their data, of which only a few sets are kept in memory.
    for place, experiment in sorted(enumerate(experiments), key=lambda numbered: str(numbered[1].data)):
        name = names[place] = identify(experiment, load_experiment_data(experiment))
        found = kept_run(experiment)
        if found is None:
            left[name] = experiment
        else:
            rows[name] = row(found)
    return names, rows, left


def train_all(left: dict[str, Experiment], work: Callable[[list[Task]], Iterator[Outcome]]) -> Iterator[Outcome]:
    """The rows of experiments, by identity, as they come; what has one is taken out of `left`.

    Runs that other processes are training come last: they are waited for when there is nothing else to do.
    """
    wait, fruitless = False, 0
    while left:
        before = len(left)
        try:
            for name, result in work([(name, experiment, wait) for name, experiment in left.items()]):
                if result is not None:
                    del left[name]
                    yield name, result
            wait = True
        except WorkersDied as error:
            warnings.warn(f"{error}; its runs go on from their last whole epochs", SweepWarning, stacklevel=3)
            fruitless = fruitless + 1 if len(left) == before else 0
            if fruitless == FRUITLESS_PASSES:
                while left:
                    name, experiment = left.popitem()
                    yield name, failed_row(experiment, error)


@contextmanager
def open_workers(jobs: int | None, cluster: str | None) -> Iterator[Callable[[list[Task]], Iterator[Outcome]]]:
    """What does a sweep's tasks: in this process, in several, or on a cluster."""
    places = {"LABUTILS_RUNS": str(store_root().resolve()), "LABUTILS_DATA": str(data_root().resolve())}
    if cluster is not None:
        with connected(cluster):
            yield lambda tasks: on_cluster(attempt_in_worker, [(places, *task) for task in tasks], jobs)
    elif (jobs := local_jobs(jobs)) == 1:
        yield lambda tasks: (attempt(*task) for task in tasks)
    else:
        yield lambda tasks: in_processes([(places, *task) for task in tasks], jobs)


def local_jobs(jobs: int | None) -> int:
    """How many workers this machine has: one a GPU, without one a core; at most so many as are asked for."""
    import joblib

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else int(torch.backends.mps.is_available())
    most = gpus or joblib.cpu_count()
    return min(jobs or most, most)


def in_processes(calls: list[tuple], jobs: int) -> Iterator[Outcome]:
    """What comes of tasks in so many processes, as it comes.

    Raises:
        WorkersDied: one was killed; the others are ended, too.
    """
    import joblib
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    with joblib.parallel_config("loky", inner_max_num_threads=1):
        # A worker is handed one task at a time, so that those of a killed sweep have no others. At least two, because
        # joblib makes one worker of this process.
        workers = joblib.Parallel(
            max(2, min(jobs, len(calls))), batch_size=1, pre_dispatch="n_jobs", return_as="generator_unordered"
        )
    try:
        yield from workers(joblib.delayed(attempt_in_process)(*call) for call in calls)
    except TerminatedWorkerError as error:
        raise WorkersDied("a worker process was killed, as systems do when memory runs out") from error


def attempt_in_process(environment: Mapping[str, str], *task: object) -> Outcome:
    """As attempt_in_worker, on a GPU of the process's own where the machine has any."""
    os.environ.update(environment)  # which says where the GPUs' locks are
    claim_gpu()
    return attempt_in_worker(environment, *task)


def attempt_in_worker(environment: Mapping[str, str], *task: object) -> Outcome:
    """As attempt, in one thread, with these variables in the environment."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    try:
        return attempt(*task)
    except KeyboardInterrupt:
        raise KeyboardInterrupt from None  # one without a history, which has no way to the sweep's process


def attempt(name: str, experiment: Experiment, wait: bool) -> Outcome:
    """Train an experiment, or find its run; what went wrong is reported in its row, and the others go on."""
    try:
        return name, row(run(experiment, progress=False, wait=wait, shipped=False))  # all on the data that are here
    except Busy:
        return name, None
    except StoreError:
        raise
    except Exception as error:
        return name, failed_row(experiment, error)


@functools.cache
def claim_gpu() -> "FileLock | None":
    """Take the first free GPU for this process, until it ends: its lock. None on a machine without GPUs."""
    from filelock import Timeout

    while torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            uuid = torch.cuda.get_device_properties(index).uuid  # the index depends on $CUDA_VISIBLE_DEVICES
            held = lock(store_root() / f"gpu-{uuid}")
            with suppress(Timeout):
                held.acquire(timeout=0)
                torch.cuda.set_device(index)
                return held
        time.sleep(GPU_POLL_S)
    return None
