"""torch's random permutation, so that a draw of its CPU generator can be repeated."""

import contextlib
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np


def randperm(n, seed):
    """`torch.randperm(n)` after `torch.manual_seed(seed)`: a Mersenne twister's."""
    bits = np.random.RandomState(seed)
    order = np.arange(n)
    for i in range(n - 1):
        j = i + int(bits.randint(0, 2**32, dtype=np.uint32)) % (n - i)
        order[i], order[j] = order[j], order[i]
    return order


@contextlib.contextmanager
def drawn(eligible, seed=0):
    """`jax.random.uniform` gives priorities by which torch's choice comes first."""

    def priorities(eligible):
        places = np.flatnonzero(eligible)
        priority = np.ones(np.size(eligible), np.float32)
        priority[places[randperm(len(places), seed)]] = np.linspace(0, 0.5, len(places))
        return priority.reshape(np.shape(eligible))

    shape = jax.ShapeDtypeStruct(eligible.shape, jnp.float32)
    priority = jax.pure_callback(priorities, shape, eligible)
    with mock.patch.object(jax.random, "uniform", lambda key, shape, dtype: priority):
        yield
