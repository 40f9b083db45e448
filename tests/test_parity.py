"""The numbers of other systems, recorded from their own code, out of our recipes.

`data/reference_values.json` holds 212 outputs of verl, OpenRLHF, TRL, Liger, AReaL,
slime, SkyRL, NeMo-RL, prime-rl, open-instruct, ROLL, torchrl, Tunix and rlax on one
ragged batch: values, gradients and metrics. JAXPPO_REFERENCE_VALUES names another file
of that form. `parity/` has a table for each system; `parity/live/` makes such files.
"""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import literally
from parity.comparison import (
    LOSSES,
    VALUES,
    batch,
    compare,
    loss_and_gradient,
    number,
    read,
)

HERE = Path(__file__).parent
FILE = os.environ.get("JAXPPO_REFERENCE_VALUES", HERE / "data/reference_values.json")
REFERENCE = read(FILE)
OUTPUTS = {k: x for k, x in REFERENCE["outputs"].items() if "error" not in x}
B = batch(REFERENCE["inputs"])

# What reads masked tokens in the system itself: that is the fault it reproduces.
READS_PADDING = {
    "liger/luspo",
    "roll/ppo core + agg_loss/token-mean",
    "rlax/clipped_surrogate_pg_loss (row mean, no mask)",
}
each_loss = pytest.mark.parametrize(
    "name", [name for name in LOSSES if name in OUTPUTS]
)


@pytest.mark.parametrize("name", OUTPUTS)
def test_value_gradient_and_metrics(name):
    assert name in LOSSES or name in VALUES, "no recipe"
    compare(name, OUTPUTS[name], B)


def test_every_entry_of_a_table_has_a_value():
    recorded = read(HERE / "data/reference_values.json")["outputs"]
    assert {*LOSSES, *VALUES} == recorded.keys()


def test_the_comparison_can_fail():
    """A loss a thousandth off, a gradient without sign, a metric gone: all are seen."""
    name = "verl/vanilla/token-mean"
    good = OUTPUTS[name]
    compare(name, good, B)
    for wrong in (
        good | {"value": good["value"] * 1.001},
        good | {"grad": np.abs(good["grad"]).tolist()},
        good | {"aux": {"actor/pg_clipfrac": 0.2001}},
    ):
        with pytest.raises(AssertionError):
            compare(name, wrong, B)
    with pytest.raises(KeyError):
        compare(name, good | {"aux": {"actor/unheard_of": 0.0}}, B)


PER_TOKEN = ("logp", "old", "rollout", "ref", "entropy")


@each_loss
def test_what_is_masked_has_no_influence(name):
    @literally
    def call(arrays):
        b = type(B)(**vars(B) | arrays)
        loss, grad, metrics = loss_and_gradient(name, b)
        return loss, grad, jax.tree.map(number, metrics, is_leaf=is_metric)

    inputs = {name: getattr(B, name) for name in PER_TOKEN}
    clean, same = call(inputs), True
    assert np.all(np.isfinite(clean[1]))
    for garbage in (np.nan, np.inf, -np.inf):
        got = call({k: jnp.where(B.mask, x, garbage) for k, x in inputs.items()})
        pairs = zip(jax.tree.leaves(got), jax.tree.leaves(clean), strict=True)
        same = same and all(np.array_equal(x, y) for x, y in pairs)
    assert same is (name not in READS_PADDING)


def is_metric(x):
    return hasattr(x, "all_reduce")


@each_loss
def test_jit_is_eager(name):
    def run(logp):
        return loss_and_gradient(name, type(B)(**vars(B) | {"logp": logp}))[:2]

    for got, expected in zip(jax.jit(run)(B.logp), run(B.logp), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
