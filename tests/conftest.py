import os
import shutil
import subprocess
from pathlib import Path

import hypothesis
import pytest
import torch
from playwright.sync_api import Error, expect, sync_playwright

import labutils as lab
from labutils.experiments import store as runs
from labutils.training import Callback

ROOT = Path(__file__).parents[1]
SCREENSHOTS = ROOT / "build" / "screenshots"
# Headless, as root in a container, and quiet: nothing but the page is asked for.
CHROMIUM = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
            "--disable-component-update", "--disable-sync"]  # fmt: skip
AXE = "axe-core@4.12"
hypothesis.settings.register_profile("course", deadline=None)  # tests do not depend on how busy a machine is
hypothesis.settings.load_profile("course")
expect.set_options(timeout=30_000)  # how long something may take to appear, on a busy machine, too


@pytest.fixture(scope="session")
def digits() -> lab.ImageData:
    return lab.load_data("mnist", source="builtin", device="cpu")


@pytest.fixture
def store(tmp_path, monkeypatch):
    """An empty run store."""
    folder = tmp_path / "runs"
    monkeypatch.setenv("LABUTILS_RUNS", str(folder))
    monkeypatch.setattr(runs, "shipped_root", lambda: tmp_path / "shipped")  # nor are the course's own runs found
    return folder


@pytest.fixture
def one_thread():
    """A single thread, so that sums are taken in one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def experiment() -> lab.Experiment:
    return lab.Experiment.load("mlp_mnist", profile="smoke", depth=2, width=16, epochs=2)


class InterruptAfter(Callback):
    """Interrupts once, after so many epochs, such as 1.5."""

    def __init__(self, epochs):
        self.epochs = epochs

    def after_step(self, state):
        if state.epochs >= self.epochs:
            raise KeyboardInterrupt


@pytest.fixture
def interrupt_after() -> type[InterruptAfter]:
    """A callback that ends a training as Ctrl-C does."""
    return InterruptAfter


@pytest.fixture(scope="module")
def browser():
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM)
        except Error as error:
            if os.environ.get("CHROMIUM"):
                raise
            pytest.skip(f"no Chromium: install your system's, or `playwright install chromium` ({error.message[:80]})")
        yield browser
        browser.close()


@pytest.fixture
def page(browser, request):
    """A page of the browser, which notes what is complained about, and keeps a picture of its end."""
    page = browser.new_page(viewport={"width": 1300, "height": 1000})
    page.complaints = []
    page.on("console", lambda message: message.type == "error" and page.complaints.append(message.text))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    yield page
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{request.node.name}.png")
    page.close()


@pytest.fixture(scope="session")
def online() -> dict[str, str]:
    """The environment of a command that may reach package registries, which nothing else may."""
    return {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}


@pytest.fixture(scope="session")
def axe(online):
    """axe-core, which finds what people with a screen reader, a keyboard or weak eyes can't use."""
    path = os.environ.get("AXE") or ROOT / "build" / "npm" / "node_modules" / "axe-core" / "axe.min.js"
    if not Path(path).is_file():
        command = ["npm", "install", "--prefix", str(ROOT / "build" / "npm"), "--no-audit", "--no-fund", AXE]
        try:
            subprocess.run(command, env=online, check=True, timeout=120, capture_output=True)
        except (OSError, subprocess.SubprocessError) as error:
            pytest.skip(f"no axe-core: npm can't install it ({error}); or give its axe.min.js as $AXE")
    return Path(path).read_text()
