"""Recurrences along time, in the order that suits the platform."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from . import _mesh


def recurrence(x: Array, decay: Array, last: Array) -> Array:
    """y_t = x_t + decay_t y_{t+1}, along the last axis, backwards.

    Step by step where a step is cheap, or else in log2(time) rounds: on an accelerator
    each step of a loop would be a kernel of its own.
    """
    decay = decay.astype(x.dtype)
    by_platform = dict(cpu=one_by_one, default=in_rounds)
    return jax.lax.platform_dependent(x, decay, last, **by_platform)


def one_by_one(x: Array, decay: Array, last: Array) -> Array:
    def step(later, now):
        x, decay = now
        y = x + times(decay, later)
        return y, y

    return scan_backwards(step, last, (x, decay))


def in_rounds(x: Array, decay: Array, last: Array) -> Array:
    def joined(later, earlier):
        (x_later, decay_later), (x, decay) = later, earlier
        return x + times(decay, x_later), decay * decay_later

    decay = jnp.broadcast_to(decay, x.shape)
    y, whole = jax.lax.associative_scan(
        joined, (x, decay), reverse=True, axis=x.ndim - 1
    )
    return y + times(whole, last[..., None])


def scan_backwards(step: Callable, carry: Any, xs: tuple[Array, ...]) -> Array:
    """Backwards along the last axis; what has one entry there is the same at each."""
    moved = [jnp.moveaxis(x, -1, 0) for x in xs]

    def each(carry, now):
        rest = iter(now)
        return step(carry, [x[0] if len(x) == 1 else next(rest) for x in moved])

    along = [x for x in moved if len(x) != 1]
    carry = _mesh.varying(carry, _mesh.varies(carry, moved))
    _, ys = jax.lax.scan(each, carry, along, length=len(moved[0]), reverse=True)
    return jnp.moveaxis(ys, 0, -1)


def times(discounts: Array, x: Array) -> Array:
    # A terminal step discounts by 0 whatever it led to: 0 * NaN would be NaN.
    return discounts * jnp.where(discounts == 0, 0, x)


def zeros(x: Array) -> Array:
    """Zeros in place of time, made of the data: they carry its sharding."""
    if not x.shape[-1]:
        return jnp.zeros(x.shape[:-1], x.dtype)
    return jnp.where(x[..., 0] > 0, 0, 0).astype(x.dtype)
