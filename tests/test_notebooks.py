"""Every notebook runs, from top to bottom, and was committed with its outputs."""

import ast
import json
import re
from pathlib import Path

import jax
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def code_cells(path: Path) -> list[dict]:
    cells = json.loads(path.read_text())["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def test_there_are_notebooks():
    assert NOTEBOOKS


def numbers(text: str) -> list[float]:
    return [float(x) for x in re.findall(r"-?\d+\.\d*(?:e-?\d+)?", text)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(path):
    """As a reader's would, and to the numbers that were committed."""
    matplotlib.use("Agg")
    names = {}
    with (
        jax.numpy_rank_promotion("allow"),
        jax.numpy_dtype_promotion("standard"),
        np.printoptions(precision=8),
    ):
        for cell in code_cells(path):
            body = ast.parse("".join(cell["source"])).body
            if not isinstance(body[-1], ast.Expr):
                body += ast.parse("None").body
            *body, last = body
            exec(compile(ast.Module(body, []), path.name, "exec"), names)
            value = eval(compile(ast.Expression(last.value), path.name, "eval"), names)
            for output in cell["outputs"]:
                if output["output_type"] == "execute_result":
                    committed = numbers("".join(output["data"]["text/plain"]))
                    np.testing.assert_allclose(
                        numbers(repr(value)), committed, rtol=1e-5, atol=1e-6
                    )
    plt.close("all")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_has_outputs(path):
    outputs = [output for cell in code_cells(path) for output in cell["outputs"]]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not any(output["output_type"] == "error" for output in outputs)
