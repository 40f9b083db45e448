"""Row D03: what mixes rows is of the whole batch, over however many devices it lies."""

import jax
import jax.numpy as jnp
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
        *(jaxppo.leave_one_out_advantages, jaxppo.leave_one_out_std),
        *(jaxppo.pass_at_k_advantages, jaxppo.explained_variance),
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


OWN = {
    "masked_mean": lambda x, ids: jaxppo.masked_mean(x)[None],
    "whiten": lambda x, ids: jaxppo.whiten(x),
    "group_advantages": lambda x, ids: jaxppo.group_advantages(x, group_ids=ids),
}


@pytest.mark.parametrize("name", OWN)
def test_D03_inside_shard_map_a_device_has_its_own(name):
    """As on its rows alone, even where a group has samples on the other one, too."""
    x = jnp.asarray(np.random.default_rng(0).normal(3, 2, 16), jnp.float32)
    ids = jnp.arange(16) % 3
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    rows = PartitionSpec("data")
    own = jax.shard_map(OWN[name], mesh=mesh, in_specs=rows, out_specs=rows)
    got = np.split(jax.jit(own)(x, ids), 2)
    for i, half in enumerate((slice(8), slice(8, 16))):
        alone = OWN[name](x[half], ids[half])
        np.testing.assert_allclose(got[i], alone, rtol=1e-5, atol=1e-6)
        whole = OWN[name](x, ids)
        whole = whole[half] if len(whole) > 1 else whole
        assert np.all(np.abs(got[i] - whole) > 1e-3)
