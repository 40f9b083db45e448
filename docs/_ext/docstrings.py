"""Docstrings are plain text for `help()`: this makes of them what Sphinx reads.

Formulas come from docs/formulas.toml, names in backticks become links, and characters
that mean something to reStructuredText are escaped. It runs before napoleon.
"""

import re

from losses import FORMULAS
from sphinx.application import Sphinx

import jaxppo

PUBLIC = {name for name in vars(jaxppo) if name[0] != "_"} - {"recipes"}
SECTION = re.compile(r"^(Args|Returns|Raises|Attributes|Example):$", re.MULTILINE)


def quoted(code: str) -> str:
    """What stood in backticks: a link if it is a public name, else code."""
    name = code.removeprefix("jaxppo.")
    if name in PUBLIC:
        return f":py:obj:`{name} <jaxppo.{name}>`"
    return f"``{' '.join(code.split())}``"


def escaped(text: str) -> str:
    """Text outside of backticks that reStructuredText leaves alone."""
    text = text.replace("\\", "\\\\").replace("|", "\\|")
    text = re.sub(r"(?<!\w)\*(?!\w[^*\n]*\w\*)|(?<=[^\w\s(])\*(?=\s)", r"\\*", text)
    return re.sub(r"(?<=\w)_(?![\w:])", r"\\_", text)


def prose(text: str) -> str:
    """A docstring's text, without the example."""
    parts = re.split(r"(`[^`]+`)", text)
    marked = [escaped(part) for part in parts]
    marked[1::2] = [quoted(part.strip("`")) for part in parts[1::2]]
    for i in range(1, len(parts), 2):
        if re.match(r"\w", parts[i + 1]):
            marked[i] += "\\ "  # as in `Mean`s
    return "".join(marked)


def description(text: str) -> str:
    """The text before the sections; lines set in by four columns are code."""
    blocks = re.split(r"\n\n(?=    )|(?<=\S)\n\n(?=\S)", text)
    out = []
    for block in blocks:
        if block.startswith("    "):
            out.append(f".. code-block:: python\n\n{block}")
        else:
            out.append(prose(block))
    return "\n\n".join(out)


def converted(doc: str, formula: str = "") -> str:
    """A docstring in reStructuredText, napoleon's sections left as they are."""
    head, *rest = SECTION.split(doc)
    summary, _, more = description(head.strip()).partition("\n\n")
    math = f".. math::\n\n{indented(formula)}" if formula else ""
    out = [part for part in (summary, math, more) if part]
    for name, body in zip(rest[::2], rest[1::2], strict=True):
        if name == "Returns":
            body = "\n  : " + prose(body.strip())  # no type: it is in the text
        elif name != "Example":
            body = prose(body.rstrip())
        out.append(f"{name}:{body.rstrip()}")
    return "\n\n".join(out)


def indented(text: str) -> str:
    """LaTeX as the content of a directive."""
    return "\n".join(f"   {line}" for line in text.strip().splitlines())


def process(
    app: Sphinx, what: str, name: str, x: object, options: object, lines: list[str]
) -> None:
    """Autodoc's event: rewrites the lines of one docstring."""
    if name.startswith("jaxppo"):
        formula = FORMULAS.get(name.removeprefix("jaxppo."), "")
        lines[:] = converted("\n".join(lines), formula).split("\n")


def setup(app: Sphinx) -> dict[str, bool]:
    """Before napoleon, whose priority is 500."""
    app.connect("autodoc-process-docstring", process, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
