"""A Sphinx extension: formulas as MathML, which browsers draw and screen readers read without a script or a font."""

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx


def render(translator: nodes.NodeVisitor, node: nodes.math) -> None:
    """A formula within a line."""
    translator.body.append(convert(node.astext()))
    raise nodes.SkipNode


def render_block(translator: nodes.NodeVisitor, node: nodes.math_block) -> None:
    """A formula of its own, which scrolls sideways where it is wider than the page."""
    translator.body.append(f'<div class="formula" tabindex="0">{convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_html_math_renderer("mathml", inline_renderers=(render, None), block_renderers=(render_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
