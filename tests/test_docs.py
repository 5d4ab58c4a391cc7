"""What the pages in docs/ must be: links that resolve, anchors that are unique, references that can be looked up."""

import base64
import html
import os
import re
from pathlib import Path

import nbformat
import pytest

import labutils as lab
from labutils.notebook.plots import matching

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
REFERENCES = (ROOT / "docs" / "references.md").read_text(encoding="utf-8")
GLOSSARY = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
PICTURES = ROOT / "docs" / "pictures"
# Which figure of a notebook the README shows: the only one whose words begin so.
SHOWN = {
    "01": "Heatmaps of accuracy by depth and width.",
    "02": "Lines of gradient norms by layer with bands. Lines: plain from",
    "03": "Lines of mean accuracy with bands. Lines: plain from",
    "04": "Lines of mean accuracy with bands. Lines: transfer, all stages from",
    "05": "Lines of mean accuracy with bands. Lines: plain, taught from",
}
# Which runs of the bank the rows of the README's tables are about, in their order.
PLAIN = {"normalization": None, "residual": False}
DEEP = {"depth": 80, "normalization": None, "init": "default"}
SKIPPED = DEEP | {"residual": True}
FIFTY = {"blocks": [5, 6, 8, 5], "width": 16, "zero_init_residual": True}
FROZEN = {"backbone": "cnn_backbone", "progressive": False}
TUNED = FROZEN | {"method": "fine_tuning"}
TAUGHT = {"teacher": "distillation_teacher", "alpha": 0.9, "temperature": 3.0, "shuffled": False}
MEASURED = {
    "01": [
        ("mlp_depth_width", PLAIN | {"depth": 2, "width": 128, "scheduler": None}),
        ("mlp_depth_width", PLAIN | {"depth": 10, "width": 64, "scheduler": None}),
        ("mlp_depth_width", PLAIN | {"depth": 40, "scheduler": None}),
    ],
    "02": [
        ("mlp_init", DEEP | {"residual": False}),
        ("mlp_init", DEEP | {"residual": False, "init": "he"}),
        ("mlp_init", SKIPPED | {"residual_scale": 1.0}),
        ("mlp_init", SKIPPED | {"residual_scale": "depth"}),
    ],
    "03": [
        ("cnn_depth", FIFTY | {"residual": False}),
        ("cnn_depth", FIFTY | {"residual": True}),
        ("cnn_long", {"layers": 50, "residual": False}),
        ("cnn_long", {"layers": 50, "residual": True}),
        ("cnn_improved", {"augment": None, "optimizer": "adam", "scheduler": None}),
        ("cnn_improved", {"averaging": 0.98}),
        ("cnn_shallow", {}),
    ],
    "04": [
        ("transfer_ladder", FROZEN | {"method": "knn"}),
        ("transfer_ladder", FROZEN | {"method": "probe"}),
        ("transfer_ladder", TUNED | {"stages": 1}),
        ("transfer_ladder", TUNED | {"stages": -1}),
        ("transfer_ladder", {"backbone": None}),
    ],
    "05": [
        ("distillation_controls", {"teacher": None, "label_smoothing": 0.0}),
        ("distillation_controls", TAUGHT | {"consistent": False}),
        ("distillation_controls", TAUGHT | {"consistent": True}),
        ("distillation_consistent", {"teacher": None, "epochs": 24}),
        ("distillation_consistent", TAUGHT | {"consistent": False, "epochs": 24}),
        ("distillation_consistent", TAUGHT | {"consistent": True, "epochs": 24}),
        ("distillation_data", {"teacher": None, "per_class": 450}),
        ("distillation_data", {"teacher": "distillation_teacher", "per_class": 450}),
    ],
}
ANCHOR = re.compile(r'<a id="([^"]*)"></a>')
ADDRESS = re.compile(r"https?://[^\s)>\]]+")
# What has neither an arXiv number nor a DOI has its publisher's or author's page.
LASTING = re.compile(
    r"https://(arxiv\.org/abs/\d{4}\.\d{4,5}|doi\.org/10\.\d{4,}/\S+|www\.jstor\.org/stable/\d+|jmlr\.org/papers/\S+"
    r"|proceedings\.mlr\.press/\S+|www\.cs\.toronto\.edu/~kriz/\S+|kellerjordan\.github\.io/\S+|myrtle\.ai/learn/\S+)"
)
ENTRY = re.compile(r'- <a id="(?P<anchor>\w+)"></a>(?P<authors>[^(]+) \((?P<year>\d{4})\)\. \[(?P<title>.+)\]\(')
TERM = re.compile(
    r'<a id="(?P<anchor>[\w-]+)"></a>\*\*(?P<term>[^*]+)\*\* \(\[(?P<number>\d\d)\]\((?P<notebook>\S+)\)\)\. '
)
ENTRIES = [line for line in REFERENCES.splitlines() if line.startswith("- ")]
TERMS = [line for line in GLOSSARY.splitlines() if line.startswith("<a ")]


def text_of(path):
    if path.suffix != ".ipynb":
        return path.read_text(encoding="utf-8")
    cells = nbformat.read(path, as_version=4).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def anchors_of(text):
    """Where a link into a page can lead: anchors, and headings as GitHub names them."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    slugs = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
    return [*ANCHOR.findall(text), *slugs]


@pytest.mark.parametrize("path", [*PAGES, *NOTEBOOKS], ids=lambda path: path.name)
def test_links_to_other_files_resolve(path):
    text = re.sub(r"`[^`]*`", "", re.sub(r"```.*?```", "", text_of(path), flags=re.DOTALL))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://", "mailto:", "attachment:")):
            continue
        name, _, anchor = target.partition("#")
        linked = (path.parent / name).resolve() if name else path
        assert linked.exists(), target
        if anchor and linked.suffix in (".md", ".ipynb"):
            assert anchor in anchors_of(text_of(linked)), target


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_anchors_are_unique(path):
    anchors = anchors_of(text_of(path))
    assert sorted(set(anchors)) == sorted(anchors)


def test_each_reference_can_be_looked_up():
    assert len(ENTRIES) > 40
    for line in ENTRIES:
        (address,) = ADDRESS.findall(line)
        assert LASTING.fullmatch(address), line
    addresses = [address for line in ENTRIES for address in ADDRESS.findall(line)]
    assert len(set(addresses)) == len(addresses)


def test_each_reference_is_named_by_author_and_year():
    found = [ENTRY.match(line) for line in ENTRIES]
    assert all(found), [line for line, match in zip(ENTRIES, found, strict=True) if not match]
    for match in found:
        plain = match["authors"].translate(str.maketrans("üá", "ua")).lower()
        first = plain.split(", ")[0].split()[-1]
        assert match["anchor"].startswith(first + match["year"])
    assert [match["anchor"] for match in found] == sorted(match["anchor"] for match in found)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_each_paper_that_a_notebook_cites_is_among_the_references(path):
    (cited,) = re.findall(r"^## References\n(.*)", text_of(path), re.MULTILINE | re.DOTALL)
    papers = [line for line in cited.splitlines() if line.startswith("- ")]
    assert papers
    known = {ADDRESS.search(line)[0]: ENTRY.match(line) for line in ENTRIES}
    for line in papers:
        entry = known[ADDRESS.search(line)[0]]
        author = entry["authors"].split(", ")[0].removesuffix(" et al.").split()[-1]
        assert f"{author} " in line
        assert entry["year"] in line
        assert re.search(r"\[(.+)\]", line)[1].lower() in entry["title"].lower(), line


def test_each_term_is_explained_in_one_or_two_sentences():
    found = [TERM.match(line) for line in TERMS]
    assert len(found) > 40
    assert all(found), [line for line, match in zip(TERMS, found, strict=True) if not match]
    names = [match["term"].casefold() for match in found]
    assert names == sorted(names)
    for match, line in zip(found, TERMS, strict=True):
        assert Path(match["notebook"]).name.startswith(match["number"])
        explanation = re.sub(r"\]\([^)]*\)", "", line[match.end() :]).replace(" et al. ", " et al ")
        assert explanation.endswith((".", ".)"))
        assert 1 <= len(re.findall(r"[.!?](?= [A-Z*]|$)", explanation)) <= 2, line


def figures_of(path):
    """The figures in a notebook's outputs: their PNG files by their words."""
    cells = nbformat.read(path, as_version=4).cells
    outputs = [output.get("data", {}).get("text/html", "") for cell in cells for output in cell.get("outputs", ())]
    found = re.findall(r'<img src="data:image/png;base64,([^"]*)" alt="([^"]*)"', "".join(outputs))
    return {html.unescape(words): base64.b64decode(png) for png, words in found}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_readme_shows_a_figure_of_each_notebook_as_it_is_committed(path):
    number = path.stem[:2]
    ((words, png),) = ((words, png) for words, png in figures_of(path).items() if words.startswith(SHOWN[number]))
    picture = PICTURES / f"{number}.png"
    if "LABUTILS_PICTURES" in os.environ:
        picture.write_bytes(png)
    assert picture.read_bytes() == png, "make pictures"
    (said,) = re.findall(rf"!\[([^\]]+)\]\(docs/pictures/{number}\.png\)", README)
    assert set(re.findall(r"\d+\.\d+", said)) <= set(re.findall(r"\d+\.\d+", words)), words


@pytest.mark.parametrize("number", MEASURED)
def test_the_readmes_figures_are_means_of_the_bank(number):
    section = README.partition(f"\n### {number} · ")[2].partition("\n##")[0]
    said = re.findall(r"^\| .+ \| (\d+\.\d+ ± \d+\.\d+ %) \| (\d+) \|$", section, re.MULTILINE)
    banked = [matching(lab.load_results(name), chosen)["test_top1"] for name, chosen in MEASURED[number]]
    assert all(len(found) >= 3 for found in banked)
    assert [f"{figure} (n = {count})" for figure, count in said] == [lab.percent(found) for found in banked]


def test_the_pictures_are_those_that_the_readme_shows_and_small():
    shown = re.findall(r"docs/pictures/(\w+\.png)", README)
    assert sorted(set(shown)) == sorted(path.name for path in PICTURES.iterdir())
    assert sum(path.stat().st_size for path in PICTURES.iterdir()) < 1_000_000
