"""Formulas as MathML, made while the site is built: nothing to load in the browser.

By the converter that comes with docutils, which Sphinx needs anyway.
"""

import re

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator


def mathml(tex: str, **options: bool) -> str:
    r"""LaTeX as MathML, with the space that TeX leaves behind `\log`."""
    return tex2mathml(re.sub(r"\\(log|tanh|min)\s+", r"\\\1\\, ", tex), **options)


def inline(self: HTML5Translator, node: nodes.math) -> None:
    """A formula in a line of text."""
    self.body.append(mathml(node.astext()))
    raise nodes.SkipNode


def block(self: HTML5Translator, node: nodes.math_block) -> None:
    """A formula on lines of its own."""
    math = mathml(node.astext(), as_block=True)
    self.body.append(f'<div class="formula">{math}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the renderer, under the name `html_math_renderer` gives."""
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
