"""Recipes are compositions that could stand in a user's file: public names only."""

import ast
import inspect
from pathlib import Path

import pytest
from parity.comparison import TABLES

from jaxppo import recipes

PACKAGE = Path(recipes.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
SYSTEMS = {name: x for name, x in vars(recipes).items() if inspect.ismodule(x)}
SYSTEMS = {
    name: x
    for name, x in SYSTEMS.items()
    if x.__name__ == f"jaxppo.recipes.{name}" and name[0] != "_"
}


def functions(module):
    """Its public functions, that it has written itself."""
    found = vars(module).items()
    return {k: x for k, x in found if inspect.isfunction(x) and k[0] != "_"}


RECIPES = {f"{s}.{k}": x for s, m in SYSTEMS.items() for k, x in functions(m).items()}
RECIPES |= functions(recipes)
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


@pytest.mark.parametrize("table", TABLES, ids=lambda t: t.__name__)
def test_what_has_no_reference_value_says_why(table):
    for name, reason in getattr(table, "UNREFERENCED", {}).items():
        assert len(reason) > 10, name
