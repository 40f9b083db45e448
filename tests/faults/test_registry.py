"""Every row of the table is proven, once, and the page says what the table says."""

import ast
import collections
import importlib.util
import re
from pathlib import Path

import pytest

from .rows import GROUPS, ROWS

TESTS = Path(__file__).parents[1]
COUNTS = dict(N=29, S=5, H=4, D=4, T=13, X=5)


def cases_in(path):
    return [
        node.name
        for node in ast.parse(path.read_text("utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]


def named():
    """The tests of this folder, by the rows in their names."""
    found = collections.defaultdict(list)
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        for name in cases_in(path):
            for row in re.findall(r"_([A-Z]\d\d)(?=_)", name):
                found[row].append(f"faults/{path.name}::{name}")
    return found


def test_every_row_is_there_once():
    ids = [f"{group}{i:02}" for group, n in COUNTS.items() for i in range(1, n + 1)]
    assert [row.id for row in ROWS] == ids and list(GROUPS) == list(COUNTS)


def test_every_named_row_is_in_the_table():
    assert set(named()) <= {row.id for row in ROWS}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_a_row_has_a_test_or_says_that_it_has_none(row):
    tests = named()[row.id] + list(row.tests)
    assert tests or row.open
    assert row.fed and row.peers and (row.ours or row.open)
    for test in row.tests:
        file, name = test.split("::")
        assert name in cases_in(TESTS / file), test


def test_the_page_is_what_the_table_says():
    path = TESTS.parent / "docs/reliability.py"
    spec = importlib.util.spec_from_file_location("reliability", path)
    page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(page)
    assert page.PAGE.read_text("utf-8") == page.page(), "run docs/reliability.py"
