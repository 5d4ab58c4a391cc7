"""Stopping work in a background thread, as an interrupt of the kernel stops what runs in the foreground."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

stop_asked: ContextVar[threading.Event | None] = ContextVar("stop_asked", default=None)


@contextmanager
def stoppable(asked: threading.Event) -> Iterator[None]:
    """Work inside, in this thread, ends with a KeyboardInterrupt between two batches once the event is set."""
    token = stop_asked.set(asked)
    try:
        yield
    finally:
        stop_asked.reset(token)


def heed_stop() -> None:
    """Raise KeyboardInterrupt if this thread's work has been asked to stop."""
    asked = stop_asked.get()
    if asked is not None and asked.is_set():
        raise KeyboardInterrupt
