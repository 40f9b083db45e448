"""Row D03: what mixes rows is of the whole batch, over however many devices it lies."""

import jax
import numpy as np
import pytest
from cases import ARRAYS, gradient
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxppo

# The others that mix rows sum, and are sharded in test_invariance.py.
MIXING = [
    case
    for case in ARRAYS
    if case.fn
    in (
        *(jaxppo.whiten, jaxppo.masked_variance, jaxppo.token_covariance),
        *(jaxppo.normalised_weights, jaxppo.group_advantages),
        jaxppo.leave_one_out_advantages,
    )
]


@pytest.mark.parametrize("axis", ["rows", "columns"])
def test_D03_statistics_over_devices(axis, unchecked):
    """All in one program: rows over devices, or each row, groups included."""
    devices = 4 if axis == "rows" else 8
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,))
    cases = {
        str(case): case
        for case in MIXING
        if axis == "rows" or case.batch.__name__ == "samples"
    }
    inputs = {name: case.inputs(0, np.float32) for name, case in cases.items()}

    def everything(inputs):
        out = {name: case(**inputs[name]) for name, case in cases.items()}
        grads = {
            name: gradient(case)(**inputs[name])
            for name, case in cases.items()
            if case.grads
        }
        return out, grads

    def place(x):
        whole = axis == "columns" and x.ndim < 2
        spec = ("data",) if axis == "rows" else (None, "data")
        return jax.device_put(
            x, NamedSharding(mesh, PartitionSpec(*(() if whole else spec)))
        )

    expected = jax.jit(everything)(inputs)
    sharded = {
        name: {k: place(x) for k, x in each.items()} for name, each in inputs.items()
    }
    got = jax.jit(everything)(sharded)
    # Sums in another order: float32's rounding, of what is up to 30 in size.
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-6, atol=5e-6)
