"""The house holds: floors, imports, one home for each name."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import jaxppo

PACKAGE = Path(jaxppo.__file__).parent
FLOORS = [
    {"_types", "_checks", "_mesh", "_units"},
    {
        "_masked",
        "_ratio",
        "_aggregate",
        "_segments",
        "_stream",
        "_head_plan",
        "_recurrence",
        "_distributions",
        "_shuffle",
    },
    {
        "_clipping",
        "_weighting",
        "_value",
        "_kl",
        "_advantages",
        "_group",
        "_correction",
        "_heads",
        "_head_divergences",
        "_metrics",
        "_trust_region",
        "_covariance",
        "_distributional",
        "_entropy",
        "_rewards",
        "_token_baseline",
        "_head_math",
        "_selective",
    },
    {"_losses", "_accumulate", "_rollout", "_fused", "_head_kl", "_guard"},
    {"_learner", "_linear_loss"},
]
ROOMS = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def imports(source: str) -> list[str]:
    """Modules that a file of the package imports; its own as `._name`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level and node.module is None:
            found += ["." + alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append("." * node.level + (node.module or ""))
    return found


def climbs(room: str, source: str) -> list[str]:
    """What a room imports that is not on a lower floor."""
    own = [name[1:] for name in imports(source) if name.startswith(".")]
    return [name for name in own if ROOMS.get(name, 99) >= ROOMS[room]]


def files() -> list[Path]:
    return [path for path in PACKAGE.glob("*.py") if path.stem != "__init__"]


def test_every_file_has_a_floor():
    assert {path.stem for path in files()} == set(ROOMS)


def test_imports_go_down():
    """And so there is no cycle."""
    assert not {p.stem: up for p in files() if (up := climbs(p.stem, p.read_text()))}


@pytest.mark.parametrize(
    "source",
    [
        "from ._learner import learner",
        "from ._value import squared_value",
        "from . import _losses",
        "def f():\n    from ._losses import ppo_loss",
    ],
)
def test_the_check_itself_can_fail(source):
    assert climbs("_clipping", source)


def test_third_parties():
    """JAX, jaxtyping and NumPy (which JAX brings); optax on the top floor only."""
    for path in files():
        roots = {n.split(".")[0] for n in imports(path.read_text()) if n[0] != "."}
        outside = roots - set(sys.stdlib_module_names) - {"jax", "jaxtyping", "numpy"}
        wanted = {"optax"} if path.stem in ("_learner", "_guard") else set()
        assert outside == wanted, path.stem


STANDARD = {"__future__", "collections", "dataclasses", "functools", "math", "typing"}
FILES = "open|read|write|load|save|tofile|fromfile|memmap"


def reaches_out(source):
    """What in it could read a file, open a connection or start a process."""
    found = {name.split(".")[0] for name in imports(source) if name[0] != "."}
    found &= set(sys.stdlib_module_names) - STANDARD
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name):
            found |= {node.id} & {"open"}
        elif isinstance(node, ast.Attribute):
            name = node.attr
            found |= {name} if re.fullmatch(f"({FILES})(_.*)?", name) else set()
    return found


def test_the_library_stays_inside():
    """It reads no file, opens no connection, starts no process."""
    paths = sorted(PACKAGE.rglob("*.py"))
    assert len(paths) > 90
    assert not {str(p): x for p in paths if (x := reaches_out(p.read_text("utf-8")))}


@pytest.mark.parametrize(
    "source",
    [
        "import socket",
        "from urllib.request import urlopen",
        "def f():\n    import pathlib",
        "open(path)",
        "path.read_text()",
        "path.write_bytes(x)",
        "f = open",
        "jnp.load(path)",
    ],
)
def test_reaching_out_is_seen(source):
    assert reaches_out(source)


def test_importing_jaxppo_loads_little():
    """No network library, no test library, no probability library, no torch."""
    program = (
        "import sys, jax, jax.numpy, optax, jaxtyping; before = set(sys.modules);"
        "import jaxppo; print(*sorted(set(sys.modules) - before))"
    )
    out = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    new = out.stdout.split()
    assert "jaxppo" in new
    assert [name for name in new if name.split(".")[0] != "jaxppo"] == []


def test_one_home_for_each_name():
    homes = {}
    for node in ast.parse((PACKAGE / "__init__.py").read_text()).body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                assert alias.asname == alias.name  # an explicit re-export
                assert alias.name not in homes
                homes[alias.name] = node.module
    public = {name for name in vars(jaxppo) if not name.startswith("_")}
    public -= {"jaxtyping"}  # put there by the import hook of these tests
    assert public == set(homes)


INSIDE = {"_checks", "_accumulate", "_segments", "_recurrence", "_mesh", "_stream"}
INSIDE |= {"_head_math", "_head_plan", "_distributions", "_guard", "_shuffle"}
INSIDE |= {"_units"}


def test_nothing_public_is_left_inside():
    """A function without an underscore is exported, or belongs to a serving room."""
    for path in files():
        if path.stem not in INSIDE:
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.FunctionDef) and node.name[0] != "_":
                    assert hasattr(jaxppo, node.name), f"{path.stem}.{node.name}"


def test_library_has_no_side_effects():
    """No jit, print, item, float of an array, assert, or global state."""
    for path in files():
        for node in ast.walk(ast.parse(path.read_text())):
            assert not isinstance(node, (ast.Assert, ast.Global)), path.stem
            if isinstance(node, ast.Call):
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                assert name not in {"print", "item", "jit"}, f"{path.stem}: {name}"


def test_rooms_are_small():
    for path in files():
        assert len(path.read_text().splitlines()) <= 375, path.stem
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                doc = len((ast.get_docstring(node) or "").splitlines())
                body = node.end_lineno - node.lineno - doc
                assert body <= 110, f"{path.stem}.{node.name}: {body} lines"
