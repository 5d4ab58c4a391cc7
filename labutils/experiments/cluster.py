"""A sweep's work on the machines of a Ray cluster."""

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from urllib.parse import urlsplit

from labutils.errors import SettingError

ANSWER_TIMEOUT_S = 6  # for an address to answer at all
JOIN_TIMEOUT_S = {"auto": 8, "ray://": 120}  # for joining; behind ray:// a cluster first starts a server of its own
JOIN_ATTEMPTS = 3  # now and then that server dies as it starts, which is seen half a minute later
MACHINES_LOST = 3  # how often Ray starts a task again that went with its machine
MOST_WAITING = 1000  # tasks that Ray is given at once


class ClusterError(OSError):
    """No Ray cluster answers at an address."""


class WorkersDied(RuntimeError):
    """A worker was killed, or its machine went away, in the middle of its work."""


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Belong to a Ray cluster for a while.

    Args:
        address: auto or ray://HOST:PORT.

    Raises:
        SettingError: an address of another form.
        ClusterError: no cluster answers there.
    """
    if address != "auto" and not is_ray_address(address):
        raise SettingError("cluster", address, "auto or ray://HOST:PORT")
    try:
        import grpc  # noqa: F401  of ray[client], without which ray:// does not work
        import ray
    except ImportError as error:
        raise ClusterError("Ray is not installed. Remedy: uv pip install 'labutils[cluster]'") from error
    if ray.is_initialized():
        yield
        return
    if reason := join(address):
        raise ClusterError(
            f"cluster: no Ray cluster answers at {address!r} ({reason}). Remedy: start one with `ray start --head`, "
            "and give the address it prints"
        )
    try:
        yield
    finally:
        ray.shutdown()


def is_ray_address(address: object) -> bool:
    """Whether an address is ray://HOST:PORT."""
    try:
        parts = urlsplit(address)
        return parts.scheme == "ray" and bool(parts.hostname) and parts.port is not None
    except (ValueError, TypeError, AttributeError):
        return False


def join(address: str) -> str:
    """Join a cluster; in words, why that was not possible, or nothing."""
    import ray

    if address != "auto" and not answers(address):
        return f"no answer within {ANSWER_TIMEOUT_S} s"
    timeout = JOIN_TIMEOUT_S["auto" if address == "auto" else "ray://"]
    reasons = [f"not joined within {timeout} s"]  # the last one counts

    def attempt() -> None:
        for _ in range(JOIN_ATTEMPTS):
            try:
                ray.init(address, log_to_driver=False, logging_level="error")
                reasons.append("")
                return
            except BaseException as error:  # this thread has nobody else to tell
                reasons.append(" ".join(str(error).split())[:200] or type(error).__name__)
                if not isinstance(error, ConnectionAbortedError):
                    return

    # In a thread, because Ray itself tries for much longer and can't be stopped.
    joining = threading.Thread(target=attempt, daemon=True)
    joining.start()
    joining.join(timeout)
    return reasons[-1]


def answers(address: str) -> bool:
    """Whether something at ray://HOST:PORT speaks Ray's protocol, gRPC."""
    import grpc

    with grpc.insecure_channel(urlsplit(address).netloc) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=ANSWER_TIMEOUT_S)
        except grpc.FutureTimeoutError:
            return False
    return True


def on_cluster(function: Callable, calls: Sequence[tuple], jobs: int | None) -> Iterator:
    """What a function returns for each call's arguments, as the results come.

    Each call is a Ray task of one core or, where the cluster has GPUs, of one GPU. Ray starts it again elsewhere when
    its machine goes away. (joblib's Ray backend waits for ever then.)

    Args:
        jobs: how many calls at once; None for as many as the cluster can do.

    Raises:
        WorkersDied: a task was lost again and again.
    """
    import ray

    device = "num_gpus" if ray.cluster_resources().get("GPU") else "num_cpus"
    task = ray.remote(**{device: 1}, max_retries=MACHINES_LOST)(function)
    waiting, running = iter(calls), []
    try:
        while True:
            free = (jobs or MOST_WAITING) - len(running)
            running += [task.remote(*arguments) for arguments in itertools.islice(waiting, free)]
            if not running:
                return
            (done,), running = ray.wait(running)
            yield ray.get(done)
    except ray.exceptions.RayTaskError as error:  # what the function raised
        raise error.cause from None
    except ray.exceptions.RayError as error:
        raise WorkersDied("machines of the cluster, or workers on them, went away again and again") from error
    finally:
        for left in running:
            ray.cancel(left, force=True)
