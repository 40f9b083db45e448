"""Recipes are compositions that could stand in a user's file: public names only."""

import ast
import inspect
from pathlib import Path

import pytest
from parity.comparison import TABLES

from jaxppo import recipes

HERE = Path(__file__).parent
PACKAGE = Path(recipes.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
SYSTEMS = {name: x for name, x in vars(recipes).items() if inspect.ismodule(x)}
SYSTEMS = {
    name: x
    for name, x in SYSTEMS.items()
    if x.__name__ == f"jaxppo.recipes.{name}" and name[0] != "_"
}


def functions(module):
    """Its public functions; those of a public module of it by `module.function`."""
    found = {k: x for k, x in vars(module).items() if k[0] != "_"}
    own = {k: x for k, x in found.items() if inspect.isfunction(x)}
    for name, inner in found.items():
        if inspect.ismodule(inner) and inner.__name__ == f"{module.__name__}.{name}":
            own |= {f"{name}.{k}": x for k, x in functions(inner).items()}
    return own


RECIPES = {f"{s}.{k}": x for s, m in SYSTEMS.items() for k, x in functions(m).items()}
METHODS = {k: x for k, x in vars(recipes).items() if inspect.isfunction(x)}
RECIPES |= {k: x for k, x in METHODS.items() if k[0] != "_"}
each_recipe = pytest.mark.parametrize("name", RECIPES)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_recipes_are_made_of_public_names(path):
    allowed = {
        "jaxppo",
        "jax",
        "jaxtyping",
        "functools",
        "math",
        "collections",
        "typing",
    }
    source = path.read_text()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            assert {a.name.split(".")[0] for a in node.names} <= allowed
        if isinstance(node, ast.ImportFrom) and not node.level:
            assert node.module.split(".")[0] in allowed
            assert not node.module.startswith("jaxppo._")
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1  # of its own package
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert node.value.id != "jaxppo" or node.attr[0] != "_"
    assert len(source.splitlines()) <= 400


def test_every_system_is_there():
    assert {
        *("verl", "openrlhf", "trl", "liger", "tunix", "nemo", "skyrl", "areal"),
        *("slime", "prime_rl", "open_instruct", "roll"),
        *("purejaxrl", "cleanrl", "sb3", "sbx", "torchrl", "stoix", "rllib", "rlax"),
    } == set(SYSTEMS)


@each_recipe
def test_it_says_what_it_is(name):
    recipe = RECIPES[name]
    doc = inspect.getdoc(recipe)
    assert doc and doc.isascii()
    summary = doc.splitlines()[0]
    assert summary.endswith(".") or summary.endswith(":")
    parameters = inspect.signature(recipe).parameters.values()
    for p in parameters:
        assert p.annotation is not p.empty, p.name
        assert p.default is p.empty or p.kind is p.KEYWORD_ONLY or p.name == "mask"


def named(path, system):
    """What a file names of a system's recipes: `system.recipe`, by attribute."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        parts = []
        while isinstance(node, ast.Attribute):
            parts, node = [node.attr, *parts], node.value
        if isinstance(node, ast.Name) and node.id in (system, f"{system}_recipes"):
            found.add(".".join(parts))
    return found


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_recipe_is_tested(system):
    """By a recorded value, or by a test that exists and that calls it."""
    path = HERE / f"parity/{system}.py"
    table = {x.__name__: x for x in TABLES}.get(f"parity.{system}")
    elsewhere = getattr(table, "UNREFERENCED", {})
    path = path if table else HERE / "test_control_parity.py"
    used = named(path, system) & functions(SYSTEMS[system]).keys()
    assert functions(SYSTEMS[system]).keys() == used | elsewhere.keys()
    assert not used & elsewhere.keys()
    for name, where in elsewhere.items():
        file, test = where.split("::")
        tree = ast.parse((HERE / file).read_text())
        defined = {x.name for x in tree.body if isinstance(x, ast.FunctionDef)}
        assert test in defined and test.startswith("test_"), where
        assert name in named(HERE / file, system), where
