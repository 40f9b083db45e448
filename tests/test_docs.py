"""The site's pages are true: their code runs, their lists are complete, links lead on.

Sphinx is not needed here; `python3 run.py docs` builds the site, and a warning fails.
"""

import ast
import inspect
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_methods

import jaxppo
from jaxppo import recipes

sys.path.extend(str(Path(__file__).parents[1] / part) for part in ("docs", "docs/_ext"))

import losses
import pages
import reference

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {path.relative_to(DOCS).as_posix(): path for path in pages.sources()}
ELSEWHERE = {"head.md", "control.md"}  # test_readme.py runs them
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def written(page):
    return PAGES[page].read_text("utf-8")


WITH_CODE = [x for x in PAGES if BLOCK.search(written(x)) and x not in ELSEWHERE]


def run(code, names, page):
    """Runs a block; a line that is a value with a number behind it must be that."""
    lines = code.splitlines()
    for node in ast.parse(code).body:
        end = lines[node.end_lineno - 1]
        shown = re.search(r"  # (-?[\d.]+(?:e-?\d+)?|-?inf|nan|True|False)$", end)
        if isinstance(node, ast.Expr) and shown:
            value = eval(compile(ast.Expression(node.value), page, "eval"), names)
            close_to(value, shown[1], f"{page}: {end.strip()}")
        else:
            exec(compile(ast.Module([node], []), page, "exec"), names)


def close_to(value, shown, what):
    """A unit of the last digit shown, as other processors round otherwise."""
    if shown in ("True", "False"):
        assert bool(value) == (shown == "True"), what
        return
    digits = len(shown.partition("e")[0].partition(".")[2])
    unit = 10.0**-digits * 10.0 ** float(shown.partition("e")[2] or 0)
    np.testing.assert_allclose(value, float(shown), rtol=0, atol=unit, err_msg=what)


@pytest.mark.parametrize("page", WITH_CODE)
def test_code_runs_from_the_page_alone(page, relaxed):
    text = written(page)
    parts = (
        text.split("\n## ") if page == "start.md" else [text]
    )  # programs, each whole
    for part in parts:
        names = {}
        for block in BLOCK.findall(part):
            run(block, names, page)
        if page == "start.md" and "history" in names:
            before, after = (names["history"][i]["reward"] for i in (0, -1))
            claim = re.search(r"goes from (-?[\d.]+) to (-?[\d.]+)", part)
            assert [f"{before:.1f}", f"{after:.1f}"] == [
                x.rstrip(".") for x in claim.groups()
            ]
        if page == "losses.md":
            arrays = [getattr(x, "value", x) for x in names.values()]
            arrays = [x for x in arrays if isinstance(x, jax.Array)]
            assert len(arrays) > 30 and not any(np.any(np.isnan(x)) for x in arrays)


def test_pages_with_code_are_many():
    assert {"index.md", "start.md", "losses.md", "trainers.md"} < set(WITH_CODE)
    assert sum(x.startswith(("concepts", "guides")) for x in WITH_CODE) >= 13


# --- links ---


def slug(heading):
    """The anchor of a heading, as GitHub and MyST make it."""
    text = re.sub(r"[^\w\- ]", "", heading.strip().lower())
    return text.replace(" ", "-")


def anchors(path):
    text = re.sub(r"^```.*?^```", "", path.read_text("utf-8"), flags=re.M | re.S)
    return {slug(x) for x in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}


ALONE = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"]
LINKED = [*pages.sources(), *(ROOT / x for x in ALONE)]
LINKED += sorted(ROOT.glob("benchmarks/results/*.md"))


@pytest.mark.parametrize("path", LINKED, ids=lambda x: x.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path):
    text = re.sub(r"^```.*?^```", "", path.read_text("utf-8"), flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:|mailto:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists() and target.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors(target), link


def test_no_page_is_copied_as_it_is():
    """Sphinx does so with what lies in _static/, whose links then lead nowhere."""
    assert not list((DOCS / "_static").rglob("*.html"))


def test_links_of_included_files_lead_to_their_pages():
    text = pages.text(DOCS / "changelog.md")
    assert "](reliability.md)" in text and "](security.md)" in text
    assert "{include}" not in text and "# Changelog" in text
    assert pages.homes()[ROOT / "README.md"] == DOCS / "index.md"


def test_every_page_is_in_the_table_of_contents():
    named = set()
    for name in PAGES:
        for tree in re.findall(
            r"^```\{toctree\}\n(.*?)^```", written(name), re.M | re.S
        ):
            entries = [x for x in tree.splitlines() if x and not x.startswith(":")]
            entries = [re.sub(r".*<(.*)>", r"\1", x) for x in entries]
            home = PAGES[name].parent
            named |= {(home / f"{x}.md").resolve() for x in entries}
    notebooks = {
        DOCS / f"notebooks/{x.stem}.md" for x in ROOT.glob("notebooks/*.ipynb")
    }
    assert named == set(PAGES.values()) - {DOCS / "index.md"} | notebooks


# --- what is generated, and complete ---


@pytest.mark.parametrize("module", [losses, reference], ids=["losses", "reference"])
def test_pages_are_what_the_docstrings_say(module):
    made = module.pages()
    for path, text in made.items():
        assert path.read_text("utf-8") == text, f"run docs/{module.__name__}.py"
    folders = {path.parent for path in made} - {DOCS}
    assert {x for folder in folders for x in folder.glob("*.md")} <= set(made)


def listed():
    """Every name that the site takes a docstring of, once for each time."""
    found = []
    for name in PAGES:
        found += re.findall(r"^\.\. auto\w+:: ([\w.]+)$", written(name), re.MULTILINE)
        found += re.findall(r"^```\{py:data\} ([\w.]+)$", written(name), re.MULTILINE)
    return found


def public(module, path):
    """Names of a module, and of the public modules in it."""
    for name, x in vars(module).items():
        own = getattr(x, "__module__", "") or ""
        if name[0] == "_":
            continue
        if inspect.ismodule(x):
            if x.__name__ == f"{path}.{name}":
                yield from public(x, f"{path}.{name}")
        elif path == "jaxppo" or (inspect.isfunction(x) and own.startswith(path)):
            yield f"{path}.{name}"


def test_every_public_name_is_there_once():
    names = listed()
    expected = set(public(jaxppo, "jaxppo")) | set(methods())
    assert sorted(names) == sorted(expected) and len(names) == len(set(names))
    assert len(names) > 400


def methods():
    """Methods of recipes are defined in a folder of their own."""
    return [f"jaxppo.recipes.{x}" for x in losses.named(recipes)]


NO_FORMULA = {
    "check_progress",
    "finalize",
    "head_plan",
    "learner",
    "linear_policy_loss",
}


def test_every_function_has_its_formula():
    functions = {name for name, x in vars(jaxppo).items() if inspect.isfunction(x)}
    assert set(losses.FORMULAS) == functions - NO_FORMULA
    for name, latex in losses.FORMULAS.items():
        assert latex.count("{") == latex.count("}"), name
        pairs = re.findall(r"\\(left|right)(?![a-z])", latex)
        assert pairs.count("left") == pairs.count("right"), name


def test_every_metric_is_explained():
    x = jnp.full((2, 3), -1.0)
    terms = dict(values=x, returns=x, entropy=x, ref_log_probs=x)
    _, metrics = jaxppo.ppo_loss(x, x, x, **terms, kl_coef=0.1, entropy_coef=0.1)
    names = {*metrics, *jaxppo.correction_metrics(x), "explained_variance"}
    b = test_methods.b
    for loss in test_methods.LOSSES.values():
        names |= set(jax.eval_shape(lambda x, f=loss: f(x, b), b.logp)[1])
    names |= {"loss", "grad_norm", "skipped", "stopped", "effective_sample_size"}
    assert names <= set(
        re.findall(r"`(?:jaxppo\.)?(\w+)", written("guides/debugging.md"))
    )
