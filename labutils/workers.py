"""Where a sweep's work is done: processes on this machine's cores, or on the machines of a Ray cluster."""

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit

import torch

from labutils.errors import SettingError, check_whole

ANSWER_TIMEOUT_S = 6  # for an address to answer at all
JOIN_TIMEOUT_S = {"auto": 8, "ray://": 120}  # for joining; behind ray:// a cluster first starts a server of its own
JOIN_ATTEMPTS = 3  # now and then that server dies as it starts, which is seen half a minute later
PARENT_POLL_S = 1.0  # how often a worker looks whether its parent is still there
MACHINES_LOST = 3  # how often Ray starts a worker again that went with its machine


class ClusterError(OSError):
    """No Ray cluster answers at an address."""


class WorkersDied(RuntimeError):
    """A worker was killed, or its machine went away, in the middle of its work."""


class Workers(Protocol):
    """Workers that do the same work at the same time, and share it among themselves."""

    def count(self) -> int:
        """How many there are now."""

    def work(self, function: Callable, *arguments: object, environment: Mapping[str, str]) -> None:
        """Let each worker call a function once, with these variables in its environment.

        Raises:
            WorkersDied: not all of them came to the end.
        """


@dataclass(frozen=True)
class LocalWorkers:
    """Processes of one thread each; a single worker is this process, with all its threads."""

    jobs: int

    def count(self) -> int:
        return self.jobs

    def work(self, function: Callable, *arguments: object, environment: Mapping[str, str]) -> None:
        import joblib
        from joblib.externals.loky.process_executor import TerminatedWorkerError

        if self.jobs == 1:
            function(*arguments)
            return
        call = joblib.delayed(call_in_child)(os.getpid(), function, arguments, environment)
        try:
            with joblib.parallel_config("loky", n_jobs=self.jobs, inner_max_num_threads=1):
                joblib.Parallel(batch_size=1)([call] * self.jobs)
        except TerminatedWorkerError as error:
            raise WorkersDied("a worker process was killed, as systems do when memory runs out") from error


@dataclass(frozen=True)
class RayWorkers:
    """Ray tasks of one core each or, where the cluster has GPUs, of one GPU each.

    Not through joblib's Ray backend: its pool of actors waits for ever once a machine of the cluster has gone. A task
    whose machine goes is started again by Ray on another one, and the others work on.
    """

    jobs: int | None

    def resources(self) -> tuple[str, int]:
        """What a worker needs one of, and how many of it the cluster has now."""
        import ray

        alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        total = {kind: int(sum(node.get(kind, 0) for node in alive)) for kind in ("CPU", "GPU")}
        return ("num_gpus", total["GPU"]) if total["GPU"] else ("num_cpus", total["CPU"])

    def count(self) -> int:
        there = self.resources()[1]
        return max(1, there if self.jobs is None else min(self.jobs, there))

    def work(self, function: Callable, *arguments: object, environment: Mapping[str, str]) -> None:
        import ray

        task = ray.remote(**{self.resources()[0]: 1}, max_retries=MACHINES_LOST)(call_in_worker)
        try:
            ray.get([task.remote(function, arguments, environment) for _ in range(self.count())])
        except ray.exceptions.WorkerCrashedError as error:
            raise WorkersDied("machines of the cluster, or workers on them, went away again and again") from error


def call_in_child(parent: int, function: Callable, arguments: tuple, environment: Mapping[str, str]) -> None:
    """As call_in_worker, in a process that ends when its parent does: else a killed sweep would go on without it."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_POLL_S)
        os._exit(1)

    if os.name != "nt":  # where a process keeps the number of a parent that is gone
        threading.Thread(target=watch, daemon=True).start()
    call_in_worker(function, arguments, environment)


def call_in_worker(function: Callable, arguments: tuple, environment: Mapping[str, str]) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    function(*arguments)


@contextmanager
def open_workers(jobs: int | None, cluster: str | None) -> Iterator[Workers]:
    """The workers of this machine or of a cluster.

    Args:
        jobs: how many at most; never more than there are cores (GPUs, on a cluster that has some).
        cluster: None, auto or ray://HOST:PORT.

    Raises:
        SettingError: jobs below 1, or an address of another form.
        ClusterError: no cluster answers there.
    """
    import joblib

    if jobs is not None:
        check_whole("jobs", jobs, 1)
    if cluster is None:
        yield LocalWorkers(min(jobs or joblib.cpu_count(), joblib.cpu_count()))
        return
    disconnect = connect(cluster)
    try:
        yield RayWorkers(jobs)
    finally:
        disconnect()


def connect(address: str) -> Callable[[], None]:
    """Join a Ray cluster; what to call to leave it."""
    if address != "auto" and not (isinstance(address, str) and is_ray_address(address)):
        raise SettingError("cluster", address, "auto or ray://HOST:PORT")
    try:
        import grpc  # noqa: F401  of ray[client], without which ray:// does not work
        import ray
    except ImportError as error:
        raise ClusterError("Ray is not installed. Remedy: uv pip install 'labutils[cluster]'") from error
    if ray.is_initialized():
        return lambda: None
    failure: list[BaseException] = []

    def join() -> None:
        for attempts_left in reversed(range(JOIN_ATTEMPTS)):
            try:
                ray.init(address, log_to_driver=False, logging_level="error")
                return
            except BaseException as error:  # handed on to the thread that waits
                if isinstance(error, ConnectionAbortedError) and attempts_left:
                    continue
                failure.append(error)
                return

    timeout = JOIN_TIMEOUT_S["auto" if address == "auto" else "ray://"]
    if address != "auto" and not answers(address):
        reason = f"no answer within {ANSWER_TIMEOUT_S} s"
    else:
        # Ray itself tries for much longer, and can't be stopped.
        joining = threading.Thread(target=join, daemon=True)
        joining.start()
        joining.join(timeout)
        reason = f"not joined within {timeout} s" if joining.is_alive() else ""
        if failure:
            reason = " ".join(str(failure[0]).split())[:200]
    if reason:
        raise ClusterError(
            f"cluster: no Ray cluster answers at {address!r} ({reason}). Remedy: start one with `ray start --head`, "
            "and give the address it prints"
        )
    return ray.shutdown


def answers(address: str) -> bool:
    """Whether something at ray://HOST:PORT speaks Ray's protocol, gRPC."""
    import grpc

    with grpc.insecure_channel(urlsplit(address).netloc) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=ANSWER_TIMEOUT_S)
        except grpc.FutureTimeoutError:
            return False
    return True


def is_ray_address(address: str) -> bool:
    """Whether an address is ray://HOST:PORT."""
    try:
        parts = urlsplit(address)
        return parts.scheme == "ray" and bool(parts.hostname) and parts.port is not None
    except ValueError:
        return False
