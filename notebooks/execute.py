"""Execute the notebooks and keep what they show; without arguments all of them.

python notebooks/execute.py notebooks/02_cartpole_and_a_sweep.ipynb
"""

import sys
from pathlib import Path
from typing import Any

import nbformat
from nbmake.nb_run import NotebookRun

HERE = Path(__file__).parent


def executed(path: Path, seconds: int = 1800) -> tuple[Any, Any]:
    """The notebook with new outputs, and the error that ended it, if any.

    It runs as a reader would run it: in a kernel of its own, in its own folder.
    """
    result = NotebookRun(path.resolve(), seconds).execute()
    notebook = result.nb
    # No clock and no version, so that a diff shows what changed.
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = joined(cell.outputs)
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook, result.error


def joined(outputs: list[Any]) -> list[Any]:
    """Outputs with consecutive pieces of a stream in one."""
    whole: list[Any] = []
    for out in outputs:
        last = whole[-1] if whole else {}
        if out["output_type"] == "stream" and last.get("name") == out["name"]:
            last["text"] += out["text"]
        else:
            whole.append(out)
    return whole


if __name__ == "__main__":
    given = [Path(name) for name in sys.argv[1:]]
    for path in given or sorted(HERE.glob("*.ipynb")):
        notebook, error = executed(path)
        if error is not None:
            sys.exit(f"{path}: {error.trace}")
        nbformat.write(notebook, path)
        print(path)
