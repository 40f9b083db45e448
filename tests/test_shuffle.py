"""The order of rows: every row once, and each place as likely as any other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxppo._shuffle import FEW, shuffled


@pytest.mark.parametrize(
    "size", [1, 2, 7, FEW - 1, FEW, FEW + 1, 511, 512, 1000, 70_000]
)
def test_every_row_once(size):
    orders = jax.vmap(lambda key: shuffled(key, size))
    out = np.asarray(jax.jit(orders)(jax.random.split(jax.random.key(0), 5)))
    assert out.dtype == np.int32
    np.testing.assert_array_equal(np.sort(out, -1), np.tile(np.arange(size), (5, 1)))
    if size > 7:
        assert len({tuple(row) for row in out}) == 5
        assert not (out == np.arange(size)).mean() > 0.05


@pytest.mark.parametrize("size", [256, 300, 512])
def test_each_place_is_as_likely_as_any_other(size):
    """Chi-squared, against five deviations; so are pairs to share a minibatch."""
    num = 20_000
    orders = jax.jit(jax.vmap(lambda key: shuffled(key, size)))
    out = np.asarray(orders(jax.random.split(jax.random.key(1), num)))
    counts = np.stack([np.bincount(out[:, i], minlength=size) for i in range(size)])
    statistic = ((counts - num / size) ** 2 / (num / size)).sum()
    freedom = (size - 1) ** 2
    assert abs(statistic - freedom) < 5 * np.sqrt(2 * freedom)

    minibatch = np.argsort(out, 1) * 4 // size  # of each row
    share = np.bincount(np.arange(size) * 4 // size)
    together = np.sum(share * (share - 1)) / (size * (size - 1))
    for apart in (1, 2, 3, 16, 128):
        same = minibatch[:, apart:] == minibatch[:, :-apart]
        error = np.sqrt(together * (1 - together) / same.size)
        assert abs(same.mean() - together) < 5 * error


def test_the_same_under_jit_vmap_and_x64():
    key = jax.random.key(7)
    plain = shuffled(key, 1000)
    np.testing.assert_array_equal(plain, jax.jit(lambda key: shuffled(key, 1000))(key))
    np.testing.assert_array_equal(
        plain, jax.vmap(lambda k: shuffled(k, 1000))(key[None])[0]
    )
    with jax.enable_x64(True):
        wide = shuffled(key, 1000)
    assert wide.dtype == jnp.int32
    np.testing.assert_array_equal(plain, wide)
