"""Every notebook as a learner meets it: in JupyterLab, in a browser, at the smoke profile."""

import io
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from nbconvert.preprocessors import ClearOutputPreprocessor
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from playwright.sync_api import expect

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SCREENSHOTS = ROOT / "build" / "screenshots"
# As `make lab` starts it, except for what is a test's own.
LAB = re.search(
    r"^lab:.*\n\t\$\(BIN\)/jupyter lab (.*) \$\(JUPYTER_OPTIONS\)", (ROOT / "Makefile").read_text(), re.MULTILINE
)
# What it says of where it is: on the loopback, with a token.
ADDRESS = re.compile(r"(http://(?:localhost|127\.0\.0\.1):[1-9]\d*)/lab\?token=([0-9a-f]{40,})")
# Every cell is in the page, wherever it is scrolled to; and no question for the kernel.
TRACKER = {"windowingMode": "none", "autoStartDefaultKernel": True}
# What a notebook with nothing but explorers and a figure holds.
EXPLORERS = (
    "import labutils as lab\nexperiment = lab.Experiment.load('mlp_mnist').override(epochs=5000)",
    "lab.explorers.TrainingExplorer(experiment, {'depth': [1, 2, 5], 'normalization': [None, 'batch']})",
    "data = lab.load_data('mnist', source='builtin')\n"
    "lab.explorers.GradientExplorer(data, {'depth': [1, 5, 20], 'width': [16, 64], 'residual': [False, True]})",
    "run = lab.run(experiment.override(epochs=2), progress=False)\n"
    "lab.plots.history(run.history.frame, caption=run.caption)",
)
# So many epochs that there is something left to stop.
LONG = (r"(Explorer\(\s+experiment(\.override\(.*?\))?),", r"\1.override(epochs=5000),")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where JupyterLab has what it needs."""
    return tmp_path_factory.mktemp("jupyter")


@pytest.fixture(scope="module")
def jupyter(folder):
    """A JupyterLab of its own with copies of the notebooks, and one with nothing but explorers.

    Returns:
        The address of a notebook, with {} for its name.
    """
    copies, settings = folder / "notebooks", folder / "settings" / "@jupyterlab"
    copies.mkdir()
    for path in NOTEBOOKS:
        notebook, _ = ClearOutputPreprocessor().preprocess(nbformat.read(path, as_version=4), {})
        for cell in notebook.cells:
            cell.source = re.sub(*LONG, cell.source)
        nbformat.write(notebook, copies / path.name)
    cells = [nbformat.v4.new_code_cell(source) for source in EXPLORERS]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=notebook.metadata), copies / "explorers.ipynb")
    for extension in ("notebook", "apputils"):  # tests choose themes in the latter
        (settings / f"{extension}-extension").mkdir(parents=True)
    (settings / "notebook-extension" / "tracker.jupyterlab-settings").write_text(json.dumps(TRACKER))
    command = [sys.executable, "-m", "jupyterlab", *LAB[1].split(), "--no-browser", "--allow-root",
               "--ServerApp.port=0", f"--ServerApp.root_dir={copies}", f"--LabApp.user_settings_dir={settings.parent}",
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
        try:
            for _ in range(600):
                said = (folder / "log").read_text()
                if address := ADDRESS.search(said):
                    break
                assert server.poll() is None, said
                time.sleep(0.1)
            yield f"{address[1]}/lab/tree/{{}}?reset&token={address[2]}"
        finally:
            server.terminate()


def open_notebook(page, address, name, *, kernel=True):
    """Open a notebook, and wait for its kernel if it is to have one."""
    page.goto(address.format(name), wait_until="domcontentloaded")
    page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=60_000)
    if kernel:
        expect(page.get_by_text("Deep-learning labs | Idle")).to_be_visible(timeout=60_000)


def pick(page, menu, item):
    """Choose from JupyterLab's menu."""
    page.click(f".lm-MenuBar-item:has-text('{menu}')")
    page.click(f".lm-Menu-itemLabel:text-is('{item}')")


def run_all(page, address, name):
    """Open a notebook, and run all its cells."""
    open_notebook(page, address, name)
    indicator = page.locator(".jp-Notebook-ExecutionIndicator")
    pick(page, "Run", "Run All Cells")
    prompts = page.locator(".jp-CodeCell .jp-InputPrompt")
    expect(prompts.last).to_have_text(re.compile(r"\[\d+\]"), timeout=240_000)
    expect(indicator).to_have_attribute("data-status", "idle", timeout=60_000)


def check_undisturbed(page):
    """Neither the kernel nor the page has anything to complain about."""
    for kind in ("error", "stderr"):
        found = page.locator(f".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.{kind}']")
        assert found.count() == 0, found.first.inner_text()
    assert page.complaints == []
    # Nor does JupyterLab ask anything, such as whether to fetch news: labutils/jupyterlab.json answers.
    expect(page.locator(".Toastify__toast")).to_have_count(0)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_learner_runs_the_notebook_and_plays_with_its_explorers(notebook, jupyter, page):
    run_all(page, jupyter, notebook.name)
    check_undisturbed(page)
    explorers = page.locator(".labutils-explorer").all()
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
    if explorer.get_by_role("button", name="Train this now").count():
        train_and_stop(explorer)
        explorer.screenshot(path=SCREENSHOTS / f"{name}_stopped.png")
    else:
        for key in ("ArrowRight", "ArrowLeft"):  # each move is drawn
            before = explorer.get_by_role("img").get_attribute("src")
            explorer.get_by_role("slider", disabled=False).first.press(key)
            expect(explorer.get_by_role("img")).not_to_have_attribute("src", before)
    copy_the_code(explorer)
    reset(explorer)


def move_everything(explorer):
    """Move each slider and press each button of a setting: the code and what is said of the choice follow."""
    code, status = explorer.locator("pre"), explorer.get_by_role("status")
    for slider in explorer.get_by_role("slider", disabled=False).all():
        before = code.text_content(), status.inner_text()
        slider.press("ArrowLeft" if slider.input_value() == slider.get_attribute("max") else "ArrowRight")
        expect(code).not_to_have_text(before[0])
        expect(status).not_to_have_text(before[1])
    for button in explorer.locator("button[aria-pressed]").all():
        if (
            button.get_attribute("aria-pressed") == "true" or button.is_disabled()
        ):  # or of another method than is chosen
            continue
        before = code.text_content()
        button.click()
        expect(button).to_have_attribute("aria-pressed", "true")
        expect(code).not_to_have_text(before)


def copy_the_code(explorer):
    """The link copies the cell that would do the same; all by the keyboard."""
    page = explorer.page
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    explorer.get_by_text("Copy the code").press("Enter")
    expect(explorer.get_by_text("Copied")).to_be_visible()
    code = explorer.locator("pre").text_content()
    for _ in range(100):  # the copy may take a moment
        copied = page.evaluate("navigator.clipboard.readText()")
        if copied == code:
            break
        page.wait_for_timeout(50)
    assert copied == code


def reset(explorer):
    """Reset draws anew, by the keyboard, too."""
    before = explorer.get_by_role("img").get_attribute("src")
    explorer.get_by_role("button", name="Reset").press("Enter")
    expect(explorer.get_by_role("img")).not_to_have_attribute("src", before)


def train_and_stop(explorer):
    """A first point of the curve is drawn, a move changes nothing in the training, and Stop stops it."""
    fine_tuning = explorer.get_by_role("button", name="fine tuning")
    if fine_tuning.count():
        fine_tuning.click()
    train, stop, reset = (explorer.get_by_role("button", name=name) for name in ("Train", "Stop", "Reset"))
    for key in ("ArrowRight", "ArrowLeft"):
        before = explorer.get_by_role("img").get_attribute("src")
        train.click()
        expect(explorer.get_by_role("img")).not_to_have_attribute("src", before, timeout=60_000)
        expect(train).to_be_disabled()
        expect(reset).to_be_disabled()
        expect(explorer.get_by_text(re.compile(r"epoch \d+ of 5000, .* left"))).to_be_visible()
        explorer.get_by_role("slider", disabled=False).first.press(key)
        expect(explorer.get_by_text(re.compile(r"epoch \d+ of 5000, .* left"))).to_be_visible()
        stop.click()
        expect(train).to_be_enabled(timeout=60_000)
        expect(explorer.get_by_text("stopped early by you")).to_be_visible()


def train_for_a_while(page):
    """Let the first explorer train until the first piece of its curve is there."""
    explorer = page.locator(".labutils-explorer").first
    explorer.get_by_role("button", name="Train").click()
    expect(explorer.get_by_text(re.compile(r"epoch \d+ of 5000, .* left"))).to_be_visible()
    return explorer


def check_left_behind(page, count):
    """Each explorer's picture is there, and JupyterLab's words for a widget that is missing are not."""
    pictures = page.locator(".labutils-stand-in img")
    expect(pictures).to_have_count(count)
    for picture in pictures.all():
        expect(picture).to_be_visible()
        assert "Lines of" in picture.get_attribute("alt")
    expect(page.locator(".labutils-stand-in").get_by_text("Not connected: run this cell").first).to_be_visible()
    missing = page.locator(".jp-OutputArea-output").get_by_text(re.compile("^(Error displaying widget|Loading widget)"))
    expect(missing).to_have_count(count)
    for number in range(count):
        expect(missing.nth(number)).to_be_hidden()


def test_a_saved_notebook_shows_its_pictures_when_its_kernel_has_gone(jupyter, page):
    run_all(page, jupyter, "explorers.ipynb")
    explorer = train_for_a_while(page)
    explorer.get_by_role("button", name="Stop").click()
    expect(explorer.get_by_text("stopped early by you")).to_be_visible()
    expect(explorer.get_by_role("button", name="Train")).to_be_enabled()  # by then the stand-in has the last picture
    expect(page.locator(".labutils-stand-in img").first).to_be_hidden()
    for item in ("Restart Kernel…", "Shut Down Kernel"):
        pick(page, "File", "Save Notebook")
        expect(page.locator(".lm-mod-current.jp-mod-dirty")).to_have_count(0)
        pick(page, "Kernel", item)
        if "Restart" in item:
            page.click(".jp-Dialog .jp-mod-accept")
        time.sleep(1)
        open_notebook(page, jupyter, "explorers.ipynb", kernel="Restart" in item)
        check_left_behind(page, 2)
    stored = page.locator(".labutils-stand-in img").first.get_attribute("alt")
    assert re.search(r"Lines: Loss, depth \d, normalization none from", stored)  # as it was at the end, not at first


@pytest.mark.parametrize("item", ["Restart Kernel…", "Shut Down Kernel"])
def test_an_explorer_whose_kernel_has_gone_says_so(item, jupyter, page):
    run_all(page, jupyter, "explorers.ipynb")
    explorer = train_for_a_while(page)
    pick(page, "Kernel", item)
    if "Restart" in item:
        page.click(".jp-Dialog .jp-mod-accept")
    expect(explorer.get_by_role("status")).to_have_text("Not connected: run this cell.")
    expect(explorer.get_by_role("progressbar")).to_be_hidden()
    for control in (*explorer.get_by_role("slider").all(), explorer.get_by_role("button", name="Stop")):
        expect(control).to_be_disabled()
    expect(explorer.get_by_role("img")).to_be_visible()


def test_running_a_cell_again_takes_over_what_it_has_in_training(jupyter, page):
    run_all(page, jupyter, "explorers.ipynb")
    explorer = train_for_a_while(page)
    page.locator(".jp-CodeCell").nth(1).locator(".jp-InputPrompt").click()
    page.keyboard.press("Control+Enter")
    expect(page.locator(".labutils-explorer")).to_have_count(2)
    expect(explorer.get_by_role("button", name="Stop")).to_be_enabled()
    expect(explorer.get_by_text(re.compile(r"epoch \d+ of 5000, .* left"))).to_be_visible()
    explorer.get_by_role("button", name="Stop").click()
    expect(explorer.get_by_text("stopped early by you")).to_be_visible()
    expect(explorer.get_by_role("button", name="Train")).to_be_enabled()


def set_theme(folder, **chosen):
    path = folder / "settings" / "@jupyterlab" / "apputils-extension" / "themes.jupyterlab-settings"
    path.write_text(json.dumps(chosen))


@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_everyone_can_use_explorers_and_see_figures_in_each_theme(theme, jupyter, folder, page, axe):
    set_theme(folder, theme=f"JupyterLab {theme}")
    run_all(page, jupyter, "explorers.ipynb")
    explorer = train_for_a_while(page)
    expect(page.locator("body")).to_have_attribute("data-jp-theme-light", str(theme == "Light").lower())
    page.evaluate(axe)
    found = page.evaluate("axe.run({include: ['.jp-OutputArea-output']})")
    assert len(found["passes"]) > 10
    assert [(rule["id"], rule["nodes"][0]["html"]) for rule in found["violations"]] == []
    check_spoken(explorer)
    explorer.get_by_role("button", name="Stop").click()


def check_spoken(explorer):
    """Each control has a name and says its value in words."""
    slider = explorer.get_by_role("slider", name="depth")
    assert slider.get_attribute("aria-valuetext") == "5"
    slider.press("ArrowLeft")
    expect(slider).to_have_attribute("aria-valuetext", "2")
    group = explorer.get_by_role("group", name="normalization")
    assert [button.inner_text() for button in group.get_by_role("button", pressed=True).all()] == ["none"]
    assert "In training: depth 5" in explorer.get_by_role("progressbar").get_attribute("aria-valuetext")
    expect(explorer.get_by_role("status")).to_contain_text("depth 2, normalization none has not been trained")
    assert "Lines of loss and accuracy" in explorer.get_by_role("img").get_attribute("alt")


@pytest.mark.parametrize("width", [700, 390])  # of a window of 1400 pixels at 200 % zoom, and of a phone
def test_a_narrow_explorer_wraps_and_its_figure_keeps_its_size(width, jupyter, page):
    run_all(page, jupyter, "explorers.ipynb")
    explorer = page.locator(".labutils-explorer").first
    page.keyboard.press("Control+b")  # the files' list takes the room
    page.set_viewport_size({"width": width, "height": 900})
    right = explorer.evaluate("node => node.getBoundingClientRect().right")
    for control in (*explorer.get_by_role("button").all(), *explorer.get_by_role("slider").all()):
        assert control.evaluate("node => node.scrollWidth <= node.clientWidth + 2")  # no word is cut
        assert control.bounding_box()["x"] + control.bounding_box()["width"] <= right
    assert explorer.get_by_role("img").bounding_box()["width"] >= 680  # so small that its words can still be read
    assert explorer.locator(".picture").evaluate("node => node.scrollWidth > node.clientWidth")


def pictured():
    """The first notebook's explorer and what it needs, at the laptop profile."""
    notebook, _ = ClearOutputPreprocessor().preprocess(nbformat.read(NOTEBOOKS[0], as_version=4), {})
    first, last = (cell for cell in notebook.cells if re.search("import labutils|TrainingExplorer", cell.source))
    first.source = first.source.replace("PROFILE = None", "PROFILE = 'laptop'") + "\nrun = lab.run(experiment)"
    notebook.cells = [first, last]
    return notebook


@pytest.mark.skipif(not (ROOT / "data" / "mnist.npz").is_file(), reason="the picture shows real data")
def test_the_readme_shows_an_explorer_in_training_as_it_is(jupyter, folder, browser):
    """The picture says what the explorer offers, and is stale where that has changed; `make pictures` takes it anew."""
    set_theme(folder, **{"adaptive-theme": True})
    nbformat.write(pictured(), folder / "notebooks" / "pictured.ipynb")
    page = browser.new_page(viewport={"width": 1200, "height": 1100}, device_scale_factor=2)
    run_all(page, jupyter, "pictured.ipynb")
    explorer = page.locator(".labutils-explorer")
    explorer.get_by_role("slider", name="depth").press("ArrowRight")
    explorer.get_by_role("group", name="normalization").get_by_role("button", name="batch").click()
    explorer.get_by_role("button", name="Train").click()
    expect(explorer.get_by_text(re.compile(r"epoch [6-9] of 10, .* left"))).to_be_visible(timeout=120_000)
    for theme in ("light", "dark"):
        page.emulate_media(color_scheme=theme)
        expect(page.locator("body")).to_have_attribute("data-jp-theme-light", str(theme == "light").lower())
        expect(page.locator("#jupyterlab-splash")).to_have_count(0)  # which JupyterLab shows while it changes the theme
        png = explorer.screenshot()
        offered = " | ".join(explorer.locator(".label, button, summary").all_inner_texts())
        path = ROOT / "docs" / "pictures" / f"explorer_{theme}.png"
        if "LABUTILS_PICTURES" in os.environ:
            about = PngInfo()
            about.add_text("Description", offered)
            Image.open(io.BytesIO(png)).convert("RGB").quantize(128).save(path, optimize=True, pnginfo=about)
        assert Image.open(path).text["Description"] == offered, "make pictures"
    page.close()
