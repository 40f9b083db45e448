"""Units to compute in, so that squares stay inside what a float holds."""

import jax
import jax.numpy as jnp
from jax import Array


def power_of_two(largest: Array) -> Array:
    """The power of two below numbers of this size, which they are divided by exactly.

    What is squared after that neither overflows (past 1e19) nor vanishes (below 1e-19),
    and no bit changes where it would not have. 1 for 0, inf and NaN; constant.
    """
    largest = jax.lax.stop_gradient(largest)
    integer = jnp.int64 if largest.dtype == jnp.float64 else jnp.int32
    bits = lambda x: jax.lax.bitcast_convert_type(x, integer)
    exponent = bits(jnp.abs(largest)) & bits(jnp.full_like(largest, jnp.inf))
    power = jax.lax.bitcast_convert_type(exponent, largest.dtype)
    return jnp.where((power > 0) & (power < jnp.inf), power, 1)
