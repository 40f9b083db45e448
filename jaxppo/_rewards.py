"""Shaping of rewards, before any estimator."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from . import _checks
from ._types import Scalar


def overlong_penalty(
    lengths: Integer[Array, "*b"],
    *,
    max_length: Scalar,
    buffer: Scalar,
    penalty: Scalar = 1.0,
) -> Float[Array, "*b"]:
    """DAPO's soft punishment of long answers: 0 up to a length, then down to -penalty.

    -penalty clip((length - (max_length - buffer)) / buffer, 0, 1): add it to the
    reward (Yu et al., 2025, arXiv:2503.14476, with 20,480 and 4,096 tokens).

    Args:
      lengths: tokens in each answer, integers.
      max_length: where the penalty is whole, tokens, positive.
      buffer: tokens over which it grows, positive.
      penalty: the whole penalty, at least 0.

    Returns:
      An array of lengths' shape, of JAX's default float, in [-penalty, 0].

    Raises:
      TypeError: lengths are not integers.
      ValueError: a hyper-parameter is out of its range.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> lengths = jnp.array([50, 90, 200])
      >>> jaxppo.overlong_penalty(lengths, max_length=100, buffer=20)
      Array([-0. , -0.5, -1. ], dtype=float32)
    """
    fn = "overlong_penalty"
    _checks.integers(fn, lengths=lengths)
    x = jnp.asarray(lengths).astype(jnp.result_type(float))
    max_length = _checks.number(fn, "max_length", max_length, "(0, inf)", x.dtype)
    buffer = _checks.number(fn, "buffer", buffer, "(0, inf)", x.dtype)
    penalty = _checks.number(fn, "penalty", penalty, "[0, inf)", x.dtype)
    over = (x - (max_length - buffer)) / buffer
    return jax.lax.stop_gradient(-penalty * jnp.clip(over, 0, 1))
