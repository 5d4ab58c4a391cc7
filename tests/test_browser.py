"""Every notebook as a learner meets it: in JupyterLab, in a browser, at the smoke profile."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest
from nbconvert.preprocessors import ClearOutputPreprocessor
from playwright.sync_api import Error, expect, sync_playwright

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SCREENSHOTS = ROOT / "build" / "screenshots"
# Headless, as root in a container, and quiet: nothing but the page is asked for.
CHROMIUM = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
            "--disable-component-update", "--disable-sync"]  # fmt: skip
SETTINGS = {
    # Every cell is in the page, wherever it is scrolled to; and no question for the kernel.
    "notebook-extension/tracker": {"windowingMode": "none", "autoStartDefaultKernel": True},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}
# An observer waits, 10 s at most: to look in each frame would keep a core busy with drawing frames.
CHANGE = """
    const change = (node, attribute, enough) => new Promise((done) => {
        new MutationObserver(() => enough() && done()).observe(node, {attributeFilter: [attribute]});
        setTimeout(done, 10000);
    });"""
# From the key, and from the click, to the new picture, in milliseconds as the page sees them.
WAIT = (
    CHANGE
    + """
    const picture = explorer.querySelector('img.widget-image'), start = performance.now();
    const changed = change(picture, 'src', () => true);
    act();
    await changed;
    await picture.decode();
    return performance.now() - start;
}"""
)
MOVE = (
    """async (explorer, key) => {
    const handle = explorer.querySelector('.noUi-handle');
    const act = () => handle.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true}));"""
    + WAIT
)
PRESS = (
    """async (button) => {
    const explorer = button.closest('.widget-vbox'), act = () => button.click();"""
    + WAIT
)
# From the click until another training could begin.
STOP = (
    "async (button) => {"
    + CHANGE
    + """
    const train = button.parentElement.querySelector('button'), start = performance.now();
    const enabled = change(train, 'disabled', () => !train.disabled);
    button.click();
    await enabled;
    return performance.now() - start;
}"""
)
# So many epochs that there is something left to stop.
LONG = (r"(Explorer\(\s+experiment(\.override\(.*?\))?),", r"\1.override(epochs=5000),")


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


@pytest.fixture(scope="module")
def jupyter(tmp_path_factory):
    """A JupyterLab of its own with copies of the notebooks; its address."""
    folder = tmp_path_factory.mktemp("jupyter")
    copies, settings = folder / "notebooks", folder / "settings" / "@jupyterlab"
    copies.mkdir()
    for path in NOTEBOOKS:
        notebook, _ = ClearOutputPreprocessor().preprocess(nbformat.read(path, as_version=4), {})
        for cell in notebook.cells:
            cell.source = re.sub(*LONG, cell.source)
        nbformat.write(notebook, copies / path.name)
    for name, values in SETTINGS.items():
        path = settings / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--ServerApp.port={port}",
               "--IdentityProvider.token=", f"--ServerApp.root_dir={copies}", "--LabApp.collaborative=False",
               f"--LabApp.user_settings_dir={settings.parent}",
               f"--LabApp.workspaces_dir={folder / 'workspaces'}"]  # fmt: skip
    environment = os.environ | {
        "LABUTILS_PROFILE": "smoke",
        "LABUTILS_RUNS": str(folder / "runs"),
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
    }
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=log) as server,
    ):
        address = f"http://127.0.0.1:{port}"
        try:
            for _ in range(300):
                try:
                    urllib.request.urlopen(f"{address}/api", timeout=1)
                    break
                except OSError:
                    assert server.poll() is None, (folder / "log").read_text()
                    time.sleep(0.1)
            yield address
        finally:
            server.terminate()


@pytest.fixture
def page(browser, request):
    page = browser.new_page(viewport={"width": 1300, "height": 1000})
    page.complaints = []
    page.on("console", lambda message: message.type == "error" and page.complaints.append(message.text))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    yield page
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{request.node.name}.png")
    page.close()


def run_all(page, address, name):
    """Open a notebook, and run all its cells."""
    page.goto(f"{address}/lab/tree/{name}?reset", wait_until="domcontentloaded")
    page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=60_000)
    indicator = page.locator(".jp-Notebook-ExecutionIndicator")
    expect(page.get_by_text("Deep-learning labs | Idle")).to_be_visible(timeout=60_000)
    page.click(".lm-MenuBar-item:has-text('Run')")
    page.click(".lm-Menu-itemLabel:text-is('Run All Cells')")
    prompts = page.locator(".jp-CodeCell .jp-InputPrompt")
    expect(prompts.last).to_have_text(re.compile(r"\[\d+\]"), timeout=90_000)
    expect(indicator).to_have_attribute("data-status", "idle", timeout=60_000)


def check_undisturbed(page):
    """Neither the kernel nor the page has anything to complain about."""
    for kind in ("error", "stderr"):
        found = page.locator(f".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.{kind}']")
        assert found.count() == 0, found.first.inner_text()
    assert page.complaints == []


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_learner_runs_the_notebook_and_plays_with_its_explorers(notebook, jupyter, page):
    run_all(page, jupyter, notebook.name)
    check_undisturbed(page)
    explorers = page.locator(".widget-vbox:has(> img.widget-image)").all()
    assert explorers
    for number, explorer in enumerate(explorers):
        play(explorer, f"{notebook.stem}_{number}")
    check_undisturbed(page)


def play(explorer, name):
    """Do all that can be done with an explorer, and keep pictures of it by that name."""
    explorer.scroll_into_view_if_needed()
    explorer.screenshot(path=SCREENSHOTS / f"{name}.png")
    move_everything(explorer)
    explorer.screenshot(path=SCREENSHOTS / f"{name}_moved.png")
    if explorer.locator("button:has-text('Train this now')").count():
        train_and_stop(explorer)
        explorer.screenshot(path=SCREENSHOTS / f"{name}_stopped.png")
    else:
        assert min(explorer.evaluate(MOVE, key) for key in ("ArrowLeft", "ArrowRight") * 3) < 150
    copy_the_code(explorer)
    reset(explorer)


def move_everything(explorer):
    """Move each slider and press each button of a setting: the code and what is said of the choice follow."""
    code, status = explorer.locator("pre"), explorer.locator("> .widget-html").first
    for handle in explorer.locator(".widget-slider .noUi-target:not([disabled]) .noUi-handle").all():
        before = code.text_content(), status.inner_text()
        handle.focus()
        at_the_end = handle.get_attribute("aria-valuenow") == handle.get_attribute("aria-valuemax")
        handle.press("ArrowLeft" if at_the_end else "ArrowRight")
        expect(code).not_to_have_text(before[0])
        expect(status).not_to_have_text(before[1])
    for button in explorer.locator(".widget-toggle-buttons button:not(.mod-active)").all():
        if button.is_disabled():  # it belongs to another method than is chosen
            continue
        before = code.text_content()
        button.click()
        expect(code).not_to_have_text(before)


def copy_the_code(explorer):
    """The link copies the cell that would do the same; all by the keyboard."""
    page = explorer.page
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    explorer.get_by_text("Copy the code").press("Enter")
    expect(explorer.get_by_text("Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == explorer.locator("pre").text_content()


def reset(explorer):
    """Reset draws anew, by the keyboard, too."""
    before = explorer.locator("> img.widget-image").get_attribute("src")
    explorer.locator("button:has-text('Reset')").press("Enter")
    expect(explorer.locator("> img.widget-image")).not_to_have_attribute("src", before)


def train_and_stop(explorer):
    """The first point of the curve is there within a second, a move changes nothing, and Stop takes another second."""
    fine_tuning = explorer.locator("button:has-text('fine tuning')")
    if fine_tuning.count():
        fine_tuning.click()
    train, stop, reset = (explorer.locator(f"button:has-text('{name}')") for name in ("Train", "Stop", "Reset"))
    to_first_point, to_stop = [], []
    for key in ("ArrowRight", "ArrowLeft"):
        to_first_point.append(train.evaluate(PRESS))
        expect(train).to_be_disabled()
        expect(reset).to_be_disabled()
        expect(explorer.get_by_text(re.compile(r"epoch \d+ of 5000, .* left"))).to_be_visible(timeout=20_000)
        explorer.locator(".widget-slider .noUi-target:not([disabled]) .noUi-handle").first.press(key)
        to_stop.append(stop.evaluate(STOP))
        expect(train).to_be_enabled()
        expect(explorer.get_by_text("stopped early by you")).to_be_visible()
    assert min(to_first_point) < 1_000, to_first_point
    assert min(to_stop) < 1_000, to_stop
