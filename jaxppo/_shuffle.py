"""A random order of rows, without a sort."""

import jax
import jax.numpy as jnp

FEW = 256  # rows; fewer are sorted


def shuffled(key: jax.Array, size: int) -> jax.Array:
    """0 to size - 1 in a random order, int32.

    Each index goes where a keyed bijection sends it: a Feistel network over its bits,
    walked on for as long as it leads out of the range (Mitchell et al., 2021,
    arXiv:2106.06161). That is a few operations an index, many at a time, and nothing
    to communicate on a mesh; `jax.random.permutation` sorts, twice. Not every order
    can come out, as with any generator of less state than there are orders.
    """
    if size < FEW:
        return jax.random.permutation(key, jnp.arange(size, dtype=jnp.int32))
    low = (size - 1).bit_length() // 2
    high = (size - 1).bit_length() - low
    keys = jax.random.bits(key, (8,), jnp.uint32)

    def bijection(x: jax.Array) -> jax.Array:
        left, right, width = x >> low, x & ((1 << low) - 1), high
        for round_key in keys:
            # The upper bits of a product depend on all bits of what was multiplied.
            mixed = (right ^ round_key) * jnp.uint32(0x9E3779B1)
            left, right = (
                right,
                left ^ (mixed ^ (mixed >> 15)) * jnp.uint32(0x85EBCA6B) >> (32 - width),
            )
            width = low + high - width
        return (left << low) | right

    x = bijection(jnp.arange(size, dtype=jnp.uint32))
    if size < 1 << (low + high):
        x = jax.lax.while_loop(
            lambda x: jnp.any(x >= size),
            lambda x: jnp.where(x >= size, bijection(x), x),
            x,
        )
    return x.astype(jnp.int32)
