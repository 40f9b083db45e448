"""The README is true: its code runs, its table is complete, its commands exist."""

import dataclasses
import inspect
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from control import losses, training

import jaxppo

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
B, T, V, N, D = 8, 5, 7, 16, 3


def array(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.RandomState(0).randn(*shape), jnp.float32)


@pytest.fixture
def names():
    """What the README's reader already has."""
    mask = jnp.arange(T)[None] < jnp.array([5, 3, 1, 0, 5, 4, 2, 5])[:, None]
    old_log_probs = -2 + 0.1 * array(B, T)
    batch = {
        "tokens": jax.nn.one_hot(jnp.arange(B * T).reshape(B, T) % V, V),
        "targets": jnp.arange(B * T).reshape(B, T) % V,
        "old_log_probs": old_log_probs,
        "ref_log_probs": old_log_probs - 0.1,
        "mask": mask,
    }
    seen = {
        "obs": array(4, N, D),
        "actions": jnp.zeros((4, N), jnp.int32),
        "log_probs": jnp.full((4, N), -0.7),
        "rewards": jnp.ones((4, N)),
        "values": array(4, N),
        "next_values": array(4, N),
        "terminated": jnp.zeros((4, N)).at[:, 7].set(1),
        "truncated": jnp.zeros((4, N), bool).at[:, 11].set(True),
    }
    return {
        **{"jax": jax, "jnp": jnp, "optax": optax, "jaxppo": jaxppo},
        "model": lambda params, tokens: tokens @ params["head"],
        "net": lambda params, obs: (
            obs @ params["head"][:D],
            obs @ params["head"][:D, 0],
        ),
        "params": {"head": array(V, V)},
        "rewards": array(B),
        "log_probs": old_log_probs + 0.1 * array(B, T),
        "rollout_log_probs": old_log_probs + 0.05,
        "advantages": array(B, 1),
        "hidden": array(B, T, D),
        "unembed": array(V, D),
        "targets": jnp.arange(B * T).reshape(B, T) % V,
        "key": jax.random.key(0),
        "old_log_probs": old_log_probs,
        "batch": batch,
        "mask": mask,
        "seen": seen,
    }


def test_there_are_blocks():
    assert len(BLOCKS) == 5


@pytest.mark.parametrize(
    "block", BLOCKS, ids=["tokens", "control", "terms", "head", "recipes"]
)
def test_code_runs(block, names):
    exec(compile(block, "README.md", "exec"), names)
    if "learner" in names:
        metrics = jaxppo.finalize(names["metrics"])
        assert all(np.isfinite(value) for value in metrics.values())
        assert names["state"].step > 0 and metrics["skipped"] == 0
    else:
        loss = names["loss"]
        assert np.isfinite(getattr(loss, "value", loss))


def test_the_page_of_the_head_runs():
    page = (ROOT / "docs/head.md").read_text()
    code = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(code) > 5
    names = {}
    with jax.numpy_rank_promotion("allow"):  # as a reader has it
        for block in code:
            exec(compile(block, "docs/head.md", "exec"), names)


def test_the_page_of_control_is_true():
    page = (ROOT / "docs/control.md").read_text("utf-8")
    names = {}
    with jax.numpy_rank_promotion("allow"):  # as a reader has it
        for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
            exec(compile(block, "docs/control.md", "exec"), names)
    assert names["returns"].shape == (100,)
    shown = {key for key in names["metrics"] if key not in ("kl", "learning_rate")}
    assert all(f"`{name}`" in page for name in shown)
    details = page.split("## The details")[1].split("\n## ")[0]
    options = {x.name for x in dataclasses.fields(training.PPO)}
    cells = [line.split(" | ")[1] for line in details.splitlines() if "| " in line[1:]]
    named = {name for cell in cells for name in re.findall(r"`(\w+)[=`]", cell)}
    others = {"num_actions", "legal", "3", *losses.SYSTEMS}
    assert len(named & options) > 15 and named <= options | others


def test_table_is_complete():
    table = README.split("## What is in the box")[1].split("\n## ")[0]
    functions = {
        name
        for name, value in vars(jaxppo).items()
        if callable(value) and not name.startswith("_") and name[0].islower()
    }
    suffixed = {"clip_fraction_lower", "clip_fraction_upper"}
    named = set(re.findall(r"`([a-z_0-9]+)`", table))
    assert functions - suffixed == named & functions - suffixed
    assert {"_lower", "_upper"} <= named


def test_numbers_of_recipes():
    modules = [x for x in vars(jaxppo.recipes).values() if inspect.ismodule(x)]
    systems = [x for x in modules if x.__name__.startswith("jaxppo.recipes.")]
    systems = [x for x in systems if x.__name__.split(".")[-1][0] != "_"]
    methods = [x for x in vars(jaxppo.recipes).values() if inspect.isfunction(x)]
    returned = [inspect.signature(x).return_annotation for x in methods]
    estimators = sum(x.__module__.endswith("._estimators") for x in methods)
    controllers = returned.count(jaxppo.Controller)
    losses = sum("Mean" in str(x) for x in returned)
    assert losses + estimators + controllers == len(methods)
    assert (
        f"{losses} losses, {estimators} advantage estimators and {controllers} "
        "controller from papers"
    ) in README
    assert f"what {len(systems)} systems compute" in README
    values = json.loads((ROOT / "tests/data/reference_values.json").read_text())
    origins = {name.split("/")[0] for name in values["outputs"]} - {"skyrl-tinker"}
    assert f"{len(values['outputs'])} values that {len(origins)} systems" in README


def test_commands_exist():
    for command in re.findall(r"python3 run.py ([\w-]+)", README):
        example = ROOT / "examples" / f"{command}.py"
        assert command in ("docs", "test", "test-live") or example.exists()
    for example in re.findall(
        r"`(pendulum|acrobot|mountain_car|minatar|gymnasium_vector|sweep)`", README
    ):
        assert (ROOT / "examples" / f"{example}.py").exists()
