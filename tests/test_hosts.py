"""One loss and one learner on four kinds of networks, as docs/trainers.md has them."""

import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxppo

PAGE = (Path(__file__).parents[1] / "docs/trainers.md").read_text("utf-8")
SECTION = PAGE.split("\n## Your network\n")[1].split("\n## ")[0]
BLOCKS = re.findall(r"^```python\n(.*?)^```", SECTION, re.MULTILINE | re.DOTALL)
SHARED, NNX, LINEN, EQUINOX, PLAIN, UPDATE = BLOCKS
HOSTS = {"nnx": NNX, "linen": LINEN, "equinox": EQUINOX, "plain": PLAIN}
ROWS, STEPS, RATE, EPS = 32, 24, 3e-3, 1e-5
pytestmark = pytest.mark.usefixtures("relaxed")  # as a reader has it


def batch_of(rng):
    floats = {
        "obs": rng.randn(ROWS, 4),
        "old_log_probs": np.log(1 / 3) + 0.3 * rng.randn(ROWS),
        "advantages": rng.randn(ROWS),
        "returns": 1 + rng.randn(ROWS),
    }
    batch = {name: jnp.asarray(x, jnp.float64) for name, x in floats.items()}
    return batch | {"actions": jnp.asarray(rng.randint(0, 3, ROWS))}


def weights_of(rng):
    sizes = {"hidden": (4, 16), "actor": (16, 3), "critic": (16, 1)}
    return {
        name: [0.5 * rng.randn(*size), 0.1 * rng.randn(size[1])]
        for name, size in sizes.items()
    }


def over(params, change):
    """Every leaf by its layer: `change(layer, is_bias, leaf)`."""
    layer = lambda path: re.search("hidden|actor|critic", jax.tree_util.keystr(path))[0]
    return jax.tree.map_with_path(lambda p, x: change(layer(p), x.ndim == 1, x), params)


def like(x, shape):
    """Equinox has the outputs first."""
    return x if x.shape == shape else x.T


@functools.cache
def run(host):
    """The page's code from given weights: how they moved, and what it said."""
    with jax.enable_x64(True):
        return _run(host)


def _run(host):
    rng = np.random.RandomState(0)
    weights, names = weights_of(rng), {"batch": batch_of(rng)}
    for block in (SHARED, HOSTS[host]):
        exec(compile(block, "docs/trainers.md", "exec"), names)
    names["params"] = over(
        names["params"],
        lambda layer, is_bias, x: jnp.asarray(
            like(weights[layer][is_bias], x.shape), jnp.float64
        ),
    )
    exec(compile(UPDATE, "docs/trainers.md", "exec"), names)
    learned = {}

    def keep(layer, is_bias, x):
        weight = weights[layer][is_bias]
        learned[layer, is_bias] = like(np.asarray(x), weight.shape) - weight

    over(names["state"].params, keep)
    return learned, jaxppo.finalize(names["metrics"]), names["state"].step


@pytest.mark.parametrize("host", ["nnx", "linen", "equinox"])
def test_they_learn_the_same(host):
    """In float64: Adam makes of an error d of the gradient up to rate / eps * d a step.

    Gradients here are of order 1 and sums of 8 rows: d is a few roundings, 1e-15.
    """
    (expected, says, steps), (moves, said, _) = run("plain"), run(host)
    assert steps == STEPS and says.keys() == said.keys()
    for key, move in expected.items():
        assert np.max(np.abs(move)) > 0.02, key
        assert np.max(np.abs(moves[key] - move)) <= STEPS * RATE / EPS * 1e-15, key
    for name, value in says.items():
        np.testing.assert_allclose(said[name], value, rtol=1e-10, err_msg=name)
