"""One reference value against one recipe: value, gradient, every metric."""

import functools
import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np

import jaxppo

SYSTEMS = [
    *("verl", "openrlhf", "trl", "liger", "areal", "slime", "skyrl", "nemo"),
    *("prime_rl", "open_instruct", "roll", "torchrl", "tunix", "rlax"),
]
TABLES = [importlib.import_module(f"parity.{system}") for system in SYSTEMS]
LOSSES = {name: fn for table in TABLES for name, fn in table.LOSSES.items()}
VALUES = {name: fn for table in TABLES for name, fn in table.VALUES.items()}
TOLERANCE = 1e-5


def read(path):
    """A file of reference values: its inputs and its outputs."""
    return json.loads(Path(path).read_text("utf-8"))


def batch(inputs, dtype=jnp.float32):
    """The inputs as the tables read them."""
    b = SimpleNamespace(**{name: jnp.asarray(x, dtype) for name, x in inputs.items()})
    b.mask = jnp.asarray(inputs["mask"]) > 0
    b.adv = b.adv[:, None]  # one per sequence
    b.group = jnp.asarray(inputs["group"]).astype(jnp.int32)
    b.rows, b.time = b.mask.shape
    b.group_size = int(np.sum(np.equal(inputs["group"], inputs["group"][0])))
    return b


def loss_and_metrics(out):
    """Of a recipe that returns a `Mean`, with or without metrics."""
    return out if isinstance(out, tuple) else (out, {})


def loss_and_gradient(name, b):
    """The value of a loss, its gradient by log pi, and its metrics."""

    def value(logp):
        loss, metrics = loss_and_metrics(LOSSES[name](logp, b))
        return loss.value, metrics

    (loss, metrics), grad = jax.value_and_grad(value, has_aux=True)(b.logp)
    return loss, grad, metrics


def number(metric):
    """A metric as an array."""
    return metric.value if isinstance(metric, (*METRICS,)) else metric


METRICS = jaxppo.Mean, jaxppo.Max, jaxppo.Min


def compare(name, expected, b, tolerance=TOLERANCE):
    """Raises AssertionError, or KeyError for a metric that is not there."""
    close = functools.partial(close_where_it_counts, mask=b.mask, tolerance=tolerance)
    if name in LOSSES:
        value, grad, metrics = loss_and_gradient(name, b)
        close(grad, expected["grad"], "gradient")
    else:
        value, metrics = loss_and_metrics(VALUES[name](b))
    close(value, expected["value"], "value")
    for key, theirs in expected.get("aux", {}).items():
        close(number(metrics[key]), theirs, key)


def close_where_it_counts(got, expected, what, *, mask, tolerance):
    """What stands at masked tokens is compared with nothing."""
    assert np.shape(got) == np.shape(expected), what
    keep = mask if np.shape(got) == mask.shape else True
    np.testing.assert_allclose(
        np.where(keep, np.float64(got), 0),
        np.where(keep, np.float64(expected), 0),
        rtol=tolerance,
        atol=tolerance,
        err_msg=what,
    )
