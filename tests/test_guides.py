"""The guides' tables are true: each row runs, and gives what it says it agrees with.

A row of docs/guides/from_*.md has their name, our expression, and what that agrees
with: an output that the system itself gave (tests/data/reference_values.json), or
another expression, usually the system's recipe. The page's first block of code makes a
batch, the second short names: here the second runs on the recorded batch, too.
"""

import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity.comparison import batch, read

import jaxppo

ROOT = Path(__file__).parents[1]
PAGES = {path.stem: path for path in sorted(ROOT.glob("docs/guides/from_*.md"))}
RECORDED = read(ROOT / "tests/data/reference_values.json")
NAMES = {
    "old_log_probs": "old",
    "rollout_log_probs": "rollout",
    "ref_log_probs": "ref",
    "advantages": "adv",
}
pytestmark = pytest.mark.usefixtures("relaxed")  # as a reader has it


def blocks(page):
    text = PAGES[page].read_text("utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def rows(page):
    """Lines of tables with code in the middle: (theirs, ours, what it agrees with)."""
    for line in PAGES[page].read_text("utf-8").splitlines():
        cells = [x.strip() for x in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == 3 and cells[1].startswith("`"):
            yield [x.replace("\\|", "|").strip("`") for x in cells]


ROWS = [(page, *row) for page in PAGES for row in rows(page)]


def number(out):
    """An expression's array, whatever it returned."""
    if isinstance(out, jaxppo.Controller):  # its first coefficient, and what it becomes
        first = out.init()
        return jnp.stack([first, out.update(first, jnp.array(0.11)) / first])
    out = out[0] if isinstance(out, tuple) else out
    return jnp.asarray(getattr(out, "value", out), jnp.float32)


@functools.cache
def names_of(page, number=2):
    """What the page's blocks of code define, the first of them or both."""
    names = {}
    for block in blocks(page)[:number]:
        exec(compile(block, f"{page}.md", "exec"), names)
    return names


def on_the_record(page, expression):
    """Its value on the recorded inputs, and its gradient by the log-probs."""
    b = batch(RECORDED["inputs"])
    names = names_of(page, 1) | vars(b)
    names |= {ours: getattr(b, theirs) for ours, theirs in NAMES.items()}

    def value(log_probs):
        local = names | {"log_probs": log_probs}
        exec(compile(blocks(page)[1], f"{page}.md", "exec"), local)
        return number(eval(expression, local))

    out, pull = jax.vjp(value, b.logp)
    return out, pull(jnp.ones(()))[0] if out.shape == () else None, b.mask


def close(got, expected, mask):
    """To 1e-5, where it counts; one number a sequence may stand for its tokens."""
    got, expected = np.float64(got), np.float64(expected)
    if expected.shape == mask.shape:
        got, expected = np.where(mask, got, 0), np.where(mask, expected, 0)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("row", ROWS, ids=[f"{x[0]}-{i}" for i, x in enumerate(ROWS)])
def test_a_row_is_true(row):
    page, _, ours, same = row
    if same in RECORDED["outputs"]:
        expected = RECORDED["outputs"][same]
        value, gradient, mask = on_the_record(page, ours)
        close(value, expected["value"], mask)
        if "grad" in expected:
            close(gradient, expected["grad"], mask)
        return
    if same:
        (value, gradient, mask), other = (on_the_record(page, x) for x in (ours, same))
        close(value, other[0], mask)
        if gradient is not None:
            close(gradient, other[1], mask)
        return
    out = eval(ours, dict(names_of(page)))  # no number to compare with
    leaves = [x for x in jax.tree.leaves(out) if isinstance(x, jax.Array)]
    assert not any(bool(jnp.any(jnp.isnan(x))) for x in leaves)


def test_recorded_names_are_spelt_right():
    """What looks like a recorded output is one: it is compared, not evaluated."""
    for _, theirs, _, same in ROWS:
        assert "/" not in same.partition("(")[0] or same in RECORDED["outputs"], theirs
    assert {page for page, *_ in ROWS} == set(PAGES) and len(PAGES) == 6
    assert sum(same in RECORDED["outputs"] for *_, same in ROWS) >= 60
