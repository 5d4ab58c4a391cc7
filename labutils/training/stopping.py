"""Ending work in a background thread early, between two batches, as an explorer's Stop button does."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

stop_requested: ContextVar[threading.Event | None] = ContextVar("stop_requested", default=None)


class Stopped(Exception):
    """The work was asked to stop, and has."""


@contextmanager
def stoppable(requested: threading.Event) -> Iterator[None]:
    """Let the work inside, in this thread, end between two batches once the event is set.

    `fit` then returns the epochs so far; anything else raises Stopped.
    """
    token = stop_requested.set(requested)
    try:
        yield
    finally:
        stop_requested.reset(token)


def check_stop() -> None:
    """Raise Stopped if this thread's work has been asked to stop."""
    requested = stop_requested.get()
    if requested is not None and requested.is_set():
        raise Stopped
