"""Writes docs/api.md, docs/api/, docs/recipes.md and docs/recipes/: lists of all names.

python docs/reference.py

What they say of a name, Sphinx takes from its docstring when it builds the site.
"""

import inspect
import pathlib
import re
import types

from losses import (
    DOCS,
    FAMILIES,
    TREE,
    WRITTEN,
    cell,
    defaults,
    members,
    named,
    papers,
    paragraphs,
    row,
    systems,
    write,
)

import jaxppo
from jaxppo import recipes

FIRST = {
    "ppo_loss": ("The composition", ["_losses"]),
    "learner": ("The update step", ["_learner", "_accumulate"]),
}
LAST = {
    "masked": ("Masked statistics", ["_masked"]),
    "metrics": ("Diagnostics", ["_metrics"]),
    "large_heads": ("Heads of language models: plans", ["_head_plan", "_linear_loss"]),
    "types": ("Types", ["_types", "_head_math", "_head_kl", "_head_plan"]),
}
API = """\
# API

Every public name of `jaxppo`, a page a family. Arrays are `(*batch, time)`; masks are
bool or integer; hyper-parameters come after the `*`, and may be traced. Formulas are
in the docstrings as text, too: `help(jaxppo.gae)`.
"""
RECIPES = """\
# Recipes

`jaxppo.recipes` has named losses, composed of the [terms](losses.md). A recipe uses
public names only, so that it may be copied into your file.

- *Methods*, under their papers' names: `jaxppo.recipes.dapo(...)`. Docstrings say where
  a default is not the paper's.
- *Systems*, a module each: `jaxppo.recipes.verl.vanilla(...)` is what that version of
  the system computes, where its docstring says nothing else; what is masked has no say.
  More than half are compared with values the systems gave (`tests/parity/`), the others
  with formulas written out from their code (`tests/test_recipe_oracles.py`,
  `test_control_parity.py`).
- [Faults](recipes/faults.md): what is wrong in a system is reproduced, said, and what
  is sound is named.
"""
FAULTS = """\
# Faults that recipes reproduce

A recipe computes what its system computes. Where that is wrong, its docstring says
"Fault:" and what to use instead; these are all of them.
"""


def listed(names: list[str], what: str = "autofunction") -> str:
    """Names for Sphinx to take the docstrings of."""
    lines = [f".. {what}:: {name}" for name in names]
    return "\n".join(["```{eval-rst}", *lines, "```"])


def api_page(title: str, names: list[str]) -> str:
    """A page with a heading for each name."""
    out = [WRITTEN.format("reference"), f"# {title}\n"]
    for name in names:
        public = getattr(jaxppo, name)
        out += [f"## `{name}`\n"]
        if inspect.isfunction(public):
            out += [listed([f"jaxppo.{name}"])]
        elif inspect.isclass(public):
            out += [listed([f"jaxppo.{name}"], "autoclass")]
        else:
            out += [alias(name)]
        out += [""]
    return "\n".join(out)


def alias(name: str) -> str:
    """A type that has no docstring: its line, and the comment above it."""
    source = inspect.getsource(jaxppo._types)
    found = re.search(rf"((?:^#.*\n)*)^{name}: TypeAlias = (.*)$", source, re.MULTILINE)
    assert found
    comment = " ".join(found[1].replace("#", " ").split())
    return f"```{{py:data}} jaxppo.{name}\n`{found[2]}`\n\n{comment}\n```"


def classes(rooms: list[str]) -> list[str]:
    """Public types of these files."""
    found = []
    for name, x in vars(jaxppo).items():
        if name[0].isupper() and not inspect.ismodule(x):
            home = getattr(x, "__module__", "").removeprefix("jaxppo.")
            found += [name] if home in rooms or not home.startswith("_") else []
    return found


def api() -> dict[pathlib.Path, str]:
    """The API's index and pages."""
    out, index = {}, [WRITTEN.format("reference"), API]
    index += [row(["page", "names"]), row(["---"] * 2)]
    for slug, (title, rooms) in (FIRST | FAMILIES | LAST).items():
        names = [x.__name__ for x in members(rooms)]
        if slug == "types":
            names = classes(rooms)
        shown = ", ".join(f"[`{x}`](api/{slug}.md#{x.lower()})" for x in names)
        index += [row([f"[{title}](api/{slug}.md)", shown])]
        out[DOCS / f"api/{slug}.md"] = api_page(title, names)
    index += ["", TREE.format("\n".join(f"api/{x.stem}" for x in out))]
    return {DOCS / "api.md": "\n".join(index)} | out


def recipe_table(fns: dict[str, types.FunctionType]) -> list[str]:
    """A table of recipes: what, at which defaults, and the paper if it is named."""
    any_paper = any(map(papers, fns.values()))
    columns = ["", "what", "defaults", *["paper"] * any_paper]
    lines = [row(columns), row(["---"] * len(columns))]
    for name, fn in fns.items():
        what = cell(" ".join(paragraphs(fn)[:1]))
        lines.append(row([f"`{name}`", what, defaults(fn), *[papers(fn)] * any_paper]))
    return lines


def faults(fns: dict[str, types.FunctionType]) -> list[str]:
    """What recipes say of the faults they reproduce."""
    lines = []
    for name, fn in fns.items():
        text = " ".join(paragraphs(fn))
        for fault in re.findall(r"Fault: (.*?)(?=Fault: |$)", text):
            lines.append(f"- `{name}`: {cell(fault.strip())}")
    return lines


def recipe_page(title: str, home: types.ModuleType) -> str:
    """One system's recipes, or the methods."""
    fns, path = named(home), home.__name__
    out = [WRITTEN.format("reference"), f"# {title}\n"]
    texts = paragraphs(home) if home is not recipes else METHODS
    out += [part for text in texts for part in (cell(text), "")]
    out += [*recipe_table(fns), ""]
    if found := faults(fns):
        out += ["## Faults that they reproduce\n", *found, ""]
    out += ["## In full\n", listed([f"{path}.{name}" for name in fns])]
    return "\n".join(out) + "\n"


METHODS = [
    "Losses, estimators and controllers under their papers' names: "
    "`jaxppo.recipes.dapo(log_probs, old_log_probs, advantages, mask)`."
]


def recipe_pages() -> dict[pathlib.Path, str]:
    """The recipes' index and pages."""
    index = [WRITTEN.format("reference"), RECIPES]
    index += [row(["", "what", "recipes"]), row(["---"] * 3)]
    link = "[{}](recipes/{}.md)"
    index += [row([link.format("methods", "methods"), "", f"{len(named(recipes))}"])]
    out = {DOCS / "recipes/methods.md": recipe_page("Methods", recipes)}
    wrong = [WRITTEN.format("reference"), FAULTS]
    for name, module in systems().items():
        fns = named(module)
        what = cell(paragraphs(module)[0])
        index += [row([link.format(name, name), what, f"{len(fns)}"])]
        out[DOCS / f"recipes/{name}.md"] = recipe_page(name, module)
        if found := faults(fns):
            wrong += [f"## {name}\n", *found, ""]
    out[DOCS / "recipes/faults.md"] = "\n".join(wrong)
    index += ["", TREE.format("\n".join(f"recipes/{x.stem}" for x in out))]
    return {DOCS / "recipes.md": "\n".join(index)} | out


def pages() -> dict[pathlib.Path, str]:
    """Every page that this file writes."""
    return api() | recipe_pages()


if __name__ == "__main__":
    write(pages())
