"""How the tests run: at the smoke profile, without network, in a run store of their own; and nbval made strict."""

import atexit
import os
import shutil
import tempfile
from queue import Empty

import pytest

# Set before any kernel starts, so that the notebooks inherit them.
os.environ |= {
    "LABUTILS_PROFILE": "smoke",
    "LABUTILS_RUNS": tempfile.mkdtemp(prefix="labutils-runs-"),
    "LABUTILS_ANSWERS": tempfile.mkdtemp(prefix="labutils-answers-"),
    "TQDM_DISABLE": "1",
    # Nothing listens there: a test that needs the network fails at once instead of finding it by chance.
    "HTTP_PROXY": "http://127.0.0.1:9",
    "HTTPS_PROXY": "http://127.0.0.1:9",
    "NO_PROXY": "localhost,127.0.0.1",
}
for name in ("LABUTILS_RUNS", "LABUTILS_ANSWERS"):
    atexit.register(shutil.rmtree, os.environ[name], ignore_errors=True)
for name in ("LABUTILS_DATA", "LABUTILS_MIRROR", "WANDB_MODE", "WANDB_API_KEY"):
    os.environ.pop(name, None)

KERNEL_POLL_S = 1.0


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fail a cell that is to be compared with its stored output and has none; nbval would pass it."""
    if type(item).__name__ == "IPyNbCell" and item.options["check"] and not item.cell.outputs:
        pytest.fail("nbval-check-output without a stored output: execute the notebook and save it", pytrace=False)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Fail fast when a kernel dies: nbval waits out the cell's time-out, so look every second whether it lives."""
    from nbval.kernel import RunningKernel

    wait = RunningKernel.get_message

    def get_message(self, stream, timeout=None):
        left = float("inf") if timeout is None else float(timeout)
        while True:
            try:
                return wait(self, stream, timeout=min(KERNEL_POLL_S, max(left, 0)))
            except Empty:
                left -= KERNEL_POLL_S
                if not self.is_alive():
                    raise RuntimeError("the kernel died while executing this cell") from None
                if left <= 0:
                    raise

    RunningKernel.get_message = get_message
