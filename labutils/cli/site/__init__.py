"""The course as a site: its executed notebooks, charts in place of their explorers, and its documents, by Sphinx."""

import html
import io
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import nbformat
import vl_convert
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace, patch_docutils

from labutils.cli.site.charts import CHARTS
from labutils.files import home

HERE = Path(__file__).parent
# What is read beside the notebooks, by where it lies both here and in the site.
DOCUMENTS = ("docs/*.md", "docs/pictures/*.png", "CONTRIBUTING.md", "CHANGELOG.md", "data/README.md")
LINKED = ("LICENSE", "CITATION.cff", "data/results/*.csv", "labutils/**/*.py")  # to be downloaded
CONTENTS = """
```{toctree}
:hidden:
:caption: The course

%s
```

```{toctree}
:hidden:
:caption: Beside it

docs/running
docs/command_line
docs/glossary
docs/references
docs/teaching
docs/grading
data/README
CONTRIBUTING
CHANGELOG
```
"""
ANCHORED = ("glossary", "references")  # documents whose entries are linked to by ids of their own
REMOTE_PICTURE = re.compile(r"!\[([^\]]*)\]\(https?://[^)]*\)")  # nothing is fetched when a page is read
THEMED_PICTURE = re.compile(
    r'<picture>\s*<source [^>]*srcset="(?P<dark>[^"]*)">\s*'
    r'<img src="(?P<light>[^"]*)" alt="(?P<alt>[^"]*)">\s*</picture>'
)
IN_A_THEME = """```{{image}} {path}
:alt: {alt}
:class: only-{theme}
```
"""
STAND_IN = "labutils-stand-in"
SETTINGS = {
    "project": "Deep-learning labs",
    "copyright": "the course's authors, MIT licence",
    "extensions": ["myst_nb", "labutils.cli.site.mathml"],
    "html_theme": "furo",
    "html_title": "Deep-learning labs",
    "html_math_renderer": "mathml",
    "html_static_path": ["_static"],
    "html_css_files": ["site.css"],
    "html_copy_source": False,
    "html_show_sphinx": False,
    "language": "en",
    "myst_enable_extensions": ["amsmath", "dollarmath"],
    "myst_heading_anchors": 4,
    "nb_execution_mode": "off",
    "nb_merge_streams": True,
    "suppress_warnings": ["mystnb.unknown_mime_type"],  # a prediction's own, beside its HTML
    "html_use_index": False,
}


class SiteFailed(RuntimeError):
    """Sphinx found something wrong with the pages, such as a link that leads nowhere."""


def build_site(notebooks: Mapping[Path, nbformat.NotebookNode], profile: str, folder: Path) -> Path:
    """Write the course's pages. They need no network and no server.

    Args:
        notebooks: executed, by the paths of the course's own.
        profile: the one they were executed at.
        folder: where the pages go, in `site`; what they were made from is beside it, in `source`.

    Returns:
        The front page.

    Raises:
        SiteFailed: the pages have a fault; the message has Sphinx's own words.
    """
    source, site = folder / "source", folder / "site"
    for earlier in (source, site):
        shutil.rmtree(earlier, ignore_errors=True)
    gather(notebooks, source)
    warnings = io.StringIO()
    with patch_docutils(), docutils_namespace():
        options = {"html_theme_options": {"announcement": banner(profile)}}
        app = Sphinx(source, None, site, folder / "doctrees", "html", SETTINGS | options, None, warnings, freshenv=True)
        app.build()
    shutil.rmtree(folder / "doctrees")
    for page in site.rglob("*.html"):
        page.write_text(accessible(page.read_text(encoding="utf-8")), encoding="utf-8")
    if warnings.getvalue():
        raise SiteFailed(f"the site in {site} has faults:\n{warnings.getvalue().strip()}")
    return site / "index.html"


def banner(profile: str) -> str:
    """What stands on top of every page: at which scale its outputs were made."""
    if profile == "laptop":
        return "Figures and outputs: laptop profile, as the text."
    words = "small drawn data" if profile == "smoke" else "the original labs' scale"
    return f"Outputs: <b>{html.escape(profile)} profile</b>, {words}. The text quotes the laptop profile."


def gather(notebooks: Mapping[Path, nbformat.NotebookNode], source: Path) -> None:
    """Put all that Sphinx reads into one folder, laid out as the project is, so that its links lead where they did."""
    for pattern in (*DOCUMENTS, *LINKED):
        for path in home().glob(pattern):
            copy = source / path.relative_to(home())
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    for path in source.glob("**/*.md"):
        path.write_text(as_page(path.read_text(encoding="utf-8"), path.stem), encoding="utf-8")
    (source / "notebooks").mkdir()
    for path, notebook in notebooks.items():
        nbformat.write(for_reading(notebook, path.stem), source / "notebooks" / path.name)
    readme = as_page((home() / "README.md").read_text(encoding="utf-8"))
    contents = CONTENTS % "\n".join(f"notebooks/{path.stem}" for path in notebooks)
    (source / "index.md").write_text(readme + contents, encoding="utf-8")
    static = source / "_static"
    static.mkdir()
    shutil.copyfile(HERE / "site.css", static / "site.css")
    # In a function: its names would clash with those of Sphinx's own scripts.
    (static / "vega.js").write_text(f"(() => {{{vl_convert.javascript_bundle()}}})();", encoding="utf-8")


def as_page(text: str, name: str = "") -> str:
    """A document of the project, or a cell's text, as Sphinx reads it: the README is the front page, ids are labels, a
    picture of each theme is shown in its own.

    Args:
        text: Markdown, as on GitHub.
        name: of the document.
    """
    text = (
        REMOTE_PICTURE.sub(r"\1", text).replace("README.md)", "index.md)").replace("data/index.md)", "data/README.md)")
    )
    for theme in THEMED_PICTURE.finditer(text):
        both = [IN_A_THEME.format(path=theme[name], alt=theme["alt"], theme=name) for name in ("light", "dark")]
        text = text.replace(theme[0], "\n".join(both))
    for anchored in ANCHORED:
        text = re.sub(rf"\]\((?:\.\./)?(?:docs/)?{anchored}\.md#", f"](#{anchored}-", text)
    if name in ANCHORED:
        text = re.sub(r"\]\(#(?!(?:glossary|references)-)", f"](#{name}-", text)
        text = re.sub(r'^- <a id="([^"]*)"></a>', rf"- ({name}-\1)=\n  ", text, flags=re.MULTILINE)
        text = re.sub(r'^<a id="([^"]*)"></a>', rf"({name}-\1)=\n", text, flags=re.MULTILINE)
    return text


def for_reading(notebook: nbformat.NotebookNode, name: str) -> nbformat.NotebookNode:
    """A copy of a notebook for readers without a kernel: solutions folded, a chart in place of its last explorer."""
    notebook = nbformat.from_dict(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = as_page(cell.source)
        if "solution" in cell.metadata.get("tags", ()):
            cell.metadata.tags.append("hide-cell")
            prompts = {"code_prompt_show": "Show the solution", "code_prompt_hide": "Hide the solution"}
            cell.metadata["mystnb"] = prompts
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    stand_ins = [output for output in outputs if STAND_IN in output.get("data", {}).get("text/html", "")]
    for output in stand_ins:
        text = output["data"]["text/html"]
        output["data"]["text/html"] = re.sub(r"<p>Not connected: [^<]*</p>", run_this(name), text)
    if stand_ins and (chart := CHARTS.get(name[:2])):
        script = '<script src="../_static/vega.js"></script>'
        stand_ins[-1]["data"]["text/html"] = script + chart().as_html("explorable") + run_this(name)
    return notebook


def accessible(page: str) -> str:
    """A page with what the theme leaves out: levels of headings, and boxes that the keyboard can scroll."""
    page = page.replace('role="heading"', 'role="heading" aria-level="2"').replace("<pre>", '<pre tabindex="0">')
    return re.sub(r'class="(output text_html|table-wrapper)', r'tabindex="0" class="\1', page)


def run_this(name: str) -> str:
    """Where a reader can press Train: on the reader's own machine, or on Colab where the site knows its repository."""
    ways = ['<a href="../index.html#two-commands">on your machine</a>']
    if repository := os.environ.get("GITHUB_REPOSITORY"):
        address = f"https://colab.research.google.com/github/{repository}/blob/HEAD/notebooks/{name}.ipynb"
        ways.append(f'<a href="{html.escape(address)}">on Colab</a>')
    return f'<p class="run-this">To train what was not measured, run this notebook {" or ".join(ways)}.</p>'
