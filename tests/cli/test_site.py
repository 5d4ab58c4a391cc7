import itertools
import json
import re

import nbformat
import pytest
from playwright.sync_api import expect

import labutils as lab
from labutils.cli import site
from labutils.cli.course import read_notebooks
from labutils.cli.site import charts
from labutils.notebook.plots import matching

PAGES = ("index", "docs/glossary", "docs/references", "docs/teaching", "data/README", "CONTRIBUTING")
CHARTED = sorted(path.stem for path in read_notebooks())
REMOTE = re.compile(r"""<(?:script|link|img|iframe|source)[^>]*\s(?:src|href)=["']?(?:https?:)?//""")


def page_of(*sources, tags=()):
    """A notebook of Markdown cells and of one code cell."""
    cells = [nbformat.v4.new_markdown_cell(source) for source in sources]
    cells.append(nbformat.v4.new_code_cell("answer = 42", metadata={"tags": list(tags)}))
    return nbformat.v4.new_notebook(cells=cells)


def test_links_to_a_glossary_entry_lead_to_its_label_and_solutions_are_folded():
    notebook = page_of(
        "A [term](../docs/glossary.md#term), a [paper](../docs/references.md#he2016).", tags=["solution"]
    )
    text, solution = site.for_reading(notebook, "09_new").cells
    assert text.source == "A [term](#glossary-term), a [paper](#references-he2016)."
    assert "hide-cell" in solution.metadata.tags
    assert "hide-cell" not in notebook.cells[1].metadata.tags  # the notebook itself is as it was


def test_a_picture_of_each_theme_is_shown_in_its_own():
    text = '<picture>\n  <source media="dark" srcset="d.png">\n  <img src="l.png" alt="words">\n</picture>'
    light, dark = (
        "```{image} l.png\n:alt: words\n:class: only-light\n```\n",
        "```{image} d.png\n:alt: words\n:class: only-dark\n```\n",
    )
    assert site.as_page(f"before\n\n{text}\n\nafter") == f"before\n\n{light}\n{dark}\n\nafter"


def test_ids_of_entries_become_labels():
    text = '<a id="term"></a>**Term**. See [other](#other).\n\n<a id="other"></a>**Other**.'
    assert site.as_page(text, "glossary") == (
        "(glossary-term)=\n**Term**. See [other](#glossary-other).\n\n(glossary-other)=\n**Other**."
    )
    assert site.as_page('- <a id="he2016"></a>K. He', "references") == "- (references-he2016)=\n  K. He"


def test_the_banner_names_the_profile_and_says_where_the_text_is_of_another():
    assert "laptop profile" in site.banner("laptop")
    assert "The text quotes the laptop profile" in site.banner("smoke")
    assert "smoke profile" in site.banner("smoke")


@pytest.mark.parametrize("name", sorted(charts.CHARTS))
def test_a_chart_offers_what_is_banked_and_says_it(name):
    """Each choice has an answer in the order in which the page counts them, and rows to draw."""
    explorable = charts.CHARTS[name]()
    html = explorable.as_html("here")
    content = json.loads(re.search(r'explore\(document\.getElementById\("here"\), (.*)\);\n', html).group(1))
    choices = list(itertools.product(*explorable.choices.values()))
    assert [tuple(choice.values()) for choice in charts.every_choice(explorable.choices)] == choices
    assert len(content["answers"]) == len(choices) == len(set(content["answers"]))
    assert {name: explorable.choices[name][place] for name, place in content["places"].items()} == explorable.start
    assert len(html) < 1_000_000
    assert content["chart"]["description"]
    parameters = {one["name"] for one in content["chart"]["params"]}
    assert parameters == {f"chosen_{name}" for name in explorable.choices}


def test_the_answer_is_the_banks():
    runs = matching(lab.load_results("mlp_depth_width"), {"depth": 20, "width": 64, "normalization": "batch",
                                                          "scheduler": "cosine"})  # fmt: skip
    explorable = charts.depth_and_width()
    said = explorable.answer({"depth": 20, "width": 64, "normalization": "batch", "scheduler": "cosine"})
    assert f"{100 * runs['test_top1'].mean():.2f} ±" in said
    assert "n = 5" in said


@pytest.mark.slow
def test_a_link_that_leads_nowhere_fails_the_site(tmp_path):
    notebooks = {path: page_of("# One", "[nothing](../docs/nothing.md)") for path in list(read_notebooks())[:1]}
    with pytest.raises(site.SiteFailed, match=r"nothing\.md"):
        site.build_site(notebooks, "smoke", tmp_path)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The site of the course's notebooks as they are committed; its folder."""
    return site.build_site(read_notebooks(), "laptop", tmp_path_factory.mktemp("course")).parent


@pytest.mark.slow
def test_pages_fetch_nothing_and_are_linked_in_their_order(pages):
    found = {path: path.read_text(encoding="utf-8") for path in pages.rglob("*.html")}
    assert len(found) >= len(PAGES) + len(CHARTED)
    assert {path.name: REMOTE.findall(text) for path, text in found.items() if REMOTE.search(text)} == {}
    for before, after in itertools.pairwise(CHARTED):
        text = (pages / "notebooks" / f"{before}.html").read_text(encoding="utf-8")
        assert re.search(rf'class="next-page" href="{after}\.html"', text)
    for name in CHARTED:
        text = (pages / "notebooks" / f"{name}.html").read_text(encoding="utf-8")
        assert "laptop profile" in text
        assert "<math" in text
        assert "Show the solution" in text
        assert "<p>Not connected" not in text
        assert not re.search(r"<img(?![^>]*\salt=)", text)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHARTED)
def test_a_reader_explores_the_bank_in_the_page_itself(name, pages, page):
    page.goto((pages / "notebooks" / f"{name}.html").as_uri())
    chart = page.locator("#explorable")
    expect(chart.locator("svg").first).to_be_visible()
    chart.screenshot(path=f"build/screenshots/site_{name}.png")
    moved = [(slider, "ArrowLeft") for slider in chart.get_by_role("slider").all()]
    moved += [(button, "Enter") for button in chart.locator("button[aria-pressed=false]").all()]
    assert moved
    for control, key in moved:
        drawn, said = chart.locator("svg").first.inner_html(), chart.get_by_role("status").inner_text()
        control.press(key)
        expect(chart.get_by_role("status")).not_to_have_text(said)
        page.wait_for_function(
            "before => document.querySelector('#explorable svg').innerHTML !== before", arg=drawn, timeout=10_000
        )
    assert page.complaints == []


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "width"), [("light", 1300), ("dark", 1300), ("light", 390)])
def test_everyone_can_read_the_site(scheme, width, pages, page, axe):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 900})
    for name in (*PAGES, "notebooks/02_residual_mlp_gradients"):  # the others have nothing that these lack
        page.goto((pages / f"{name}.html").as_uri())
        page.evaluate(axe)
        found = page.evaluate("axe.run()")
        serious = [rule for rule in found["violations"] if rule["impact"] in ("serious", "critical")]
        assert [(name, rule["id"], rule["nodes"][0]["html"]) for rule in serious] == []


@pytest.mark.slow
@pytest.mark.parametrize("width", [1400, 700, 390])  # 700: a window of 1400 at 200 %
def test_no_page_scrolls_sideways(width, pages, page):
    page.set_viewport_size({"width": width, "height": 900})
    for name in (*PAGES, *(f"notebooks/{name}" for name in CHARTED)):
        page.goto((pages / f"{name}.html").as_uri())
        if name.startswith("notebooks"):
            expect(page.locator("#explorable svg").first).to_be_visible()
            for figure in page.locator(".cell_output img").all():  # no smaller than its words can be read
                assert figure.bounding_box()["width"] >= 600
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name


@pytest.mark.slow
def test_search_finds_a_word_without_a_server(pages, page):
    page.goto((pages / "search.html").as_uri() + "?q=shattering")
    expect(page.locator("#search-results li").first).to_be_visible()
    expect(page.locator("#search-results a").first).to_contain_text("Residual MLPs")
