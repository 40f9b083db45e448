"""The update of a language model, where it is not the library's."""

import jax
import jax.numpy as jnp
import optax
import pytest
from chex import assert_trees_all_close
from llm.training import clipped

GRADS = {"a": jnp.asarray([3.0, -4.0]), "b": jnp.asarray([[12.0]])}  # norm 13


@pytest.mark.parametrize("max_norm", [1.0, 12.9, 13.1])
def test_clipped_is_optax(max_norm):
    ours, _ = clipped(max_norm).update(GRADS, optax.EmptyState())
    known = optax.clip_by_global_norm(max_norm)
    assert_trees_all_close(ours, known.update(GRADS, known.init(GRADS))[0], rtol=1e-6)


def test_clipped_leaves_zeros():
    zeros = jax.tree.map(jnp.zeros_like, GRADS)
    ours, _ = clipped(1.0).update(zeros, optax.EmptyState())
    assert_trees_all_close(ours, zeros)
