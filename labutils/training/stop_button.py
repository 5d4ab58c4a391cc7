"""What work in a background thread has to do with whoever watches it: it ends when asked, and says how far it is.

An explorer's Stop button asks, and its line below the buttons shows how far the work is. Early stopping, by a setting
of the training, is a callback.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Report = Callable[[str, float], None]  # of a phase's name, and of the share of it that is done, from 0 to 1

stop_requested: ContextVar[threading.Event | None] = ContextVar("stop_requested", default=None)
report_phase: ContextVar[Report | None] = ContextVar("report_phase", default=None)
current_phase: ContextVar[str | None] = ContextVar("current_phase", default=None)


class Stopped(Exception):
    """The work was asked to stop, and has."""


@contextmanager
def stoppable(requested: threading.Event, report: Report | None = None) -> Iterator[None]:
    """Let the work inside, in this thread, end between two batches once the event is set.

    `fit` then returns the epochs so far; anything else raises Stopped.

    Args:
        requested: set where the work is to end.
        report: called in each `phase` that the work comes to, after every batch.
    """
    tokens = stop_requested.set(requested), report_phase.set(report)
    try:
        yield
    finally:
        stop_requested.reset(tokens[0])
        report_phase.reset(tokens[1])


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Say what the work inside is, such as "teacher's answers", to whoever watches it."""
    token = current_phase.set(name)
    try:
        check_stop(0)
        yield
    finally:
        current_phase.reset(token)


def check_stop(done: float | None = None) -> None:
    """Raise Stopped if this thread's work has been asked to stop.

    Args:
        done: the share of the current phase that is done, from 0 to 1, to be reported.
    """
    requested, report, name = stop_requested.get(), report_phase.get(), current_phase.get()
    if requested is not None and requested.is_set():
        raise Stopped
    if None not in (done, report, name):
        report(name, done)
