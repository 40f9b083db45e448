"""Rows X01 to X05: what files and a model's answers can do to us."""

import ast
import time
from pathlib import Path

import pytest
from llm import tasks

ROOT = Path(__file__).parents[2]
CODE = sorted([*(ROOT / "jaxppo").rglob("*.py"), *(ROOT / "examples").rglob("*.py")])
ANSWERS = {
    "code": "__import__('os').system('touch owned')",
    "powers": "9**9**9**9",
    "brackets": "(" * 1_000_000,
    "digits": "9" * 1_000_000 + "x",
    "lines": "\n" * 1_000_000,
    "nul": "\0" * 1000,
    "surrogate": "\ud800",
    "other digits": "\u0661\u00b2",
}


def calls(tree):
    """The names of what is called."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield getattr(node.func, "id", ""), getattr(node.func, "attr", "")


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_X01_nothing_unpickles_and_X05_nothing_evaluates(path):
    tree = ast.parse(path.read_text("utf-8"))
    found = set(imports(tree))
    assert not found & {"pickle", "cloudpickle", "dill", "shelve", "marshal", "sympy"}
    for name, method in calls(tree):
        assert name not in ("eval", "exec", "compile", "__import__")
        assert method not in ("parse_expr", "sympify", "literal_eval")
    source = path.read_text("utf-8")
    assert "trust_remote_code" not in source and "allow_pickle=True" not in source


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("name", ["arithmetic", "digits"])
def test_X03_answers_are_not_executed(name, answer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    task = tasks.task(name)
    start = time.monotonic()
    score = task.reward("12", ANSWERS[answer])
    assert time.monotonic() - start < 1  # a loop over a megabyte, and a slow machine
    assert 0 <= score < 1 and (name == "digits" or score == 0)
    assert not list(tmp_path.iterdir())


def test_X04_no_example_starts_a_program():
    """Nothing that a model wrote can: there is no shell, and no interpreter, to ask."""
    for path in CODE:
        tree = ast.parse(path.read_text("utf-8"))
        assert "subprocess" not in set(imports(tree)), path
        assert not {m for _, m in calls(tree)} & {"system", "popen", "execv"}, path
