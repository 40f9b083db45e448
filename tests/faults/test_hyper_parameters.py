"""Rows H01 to H04: numbers out of range, and names that do not exist."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxppo

pytestmark = pytest.mark.usefixtures("unchecked")

KINDS = {"python": float, "numpy": np.float64, "array": np.array, "jax": jnp.asarray}


def test_H02_a_bound_below_the_other():
    """Known to the program, whatever holds it: the second is checked against it."""
    x = jnp.zeros((1, 3))
    calls = [
        lambda **given: jaxppo.band_weights(x, **given),
        lambda **given: jaxppo.cispo(x, x, x, **given),
        lambda low, high: jaxppo.truncated_weights(x, floor=low, cap=high),
    ]
    for fn in calls:
        for kind in KINDS.values():
            with pytest.raises(ValueError, match=r"= 2\.0; expected a number in"):
                fn(low=kind(3.0), high=kind(2.0))


def test_H03_traced_numbers_pass_unseen():
    """They cannot be looked at: a bad one gives a bad loss, at once and in sight."""
    x, a = jnp.array([0.5, -0.5]), jnp.array([1.0, -1.0])
    sweep = jax.jit(jax.vmap(lambda e: jaxppo.clipped_surrogate(x, a, clip_eps=e)))
    eps = jnp.linspace(0.05, 0.4, 8)
    one_by_one = [jaxppo.clipped_surrogate(x, a, clip_eps=e) for e in eps]
    np.testing.assert_array_equal(sweep(eps), one_by_one)
    assert np.all(np.isnan(sweep(jnp.full(1, jnp.nan))))  # the clip is not off


MODES = "one of ('auto', 'recompute', 'cached', 'reference')"


@pytest.mark.parametrize("name", ["Cached", "cache", "", "AUTO", None])
def test_H04_names_that_do_not_exist(name):
    """Few are names: functions are passed. The message lists what there is."""
    hidden, unembed = jnp.ones((2, 3)), jnp.ones((5, 3))
    for fn in (
        lambda: jaxppo.head_plan(2, 5, 3, mode=name),
        lambda: jaxppo.token_log_probs(hidden, unembed, jnp.ones(2, int), mode=name),
    ):
        with pytest.raises((ValueError, TypeError)) as info:
            fn()
        assert MODES in str(info.value) and f"{name!r}" in str(info.value)
