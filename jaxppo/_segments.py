"""Sums and maxima over groups: samples of one prompt, consecutive or by their ids."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from . import _checks

Over = Callable[[Array], Array]


def groups(
    fn: str, group_size: int | None, group_ids: Any, **like: Array
) -> tuple[Over, Over]:
    """Two functions of `(*batch, n)`: its group's sum, and maximum, at each sample."""
    ((name, x),) = like.items()
    if not x.shape:
        raise ValueError(f"{fn}: `{name}` has shape (); expected (*batch, n).")
    if (group_size is None) == (group_ids is None):
        raise ValueError(
            f"{fn}: pass either `group_size` (samples per prompt, consecutive) or "
            "`group_ids` (an integer per sample)."
        )
    if group_size is not None:
        return _by_size(fn, group_size, name, x)
    _checks.integers(fn, group_ids=group_ids)
    if group_ids.shape not in (x.shape, x.shape[-1:]):
        raise ValueError(
            f"{fn}: `group_ids` has shape {group_ids.shape}, but `{name}` has shape "
            f"{x.shape}; pass shape {x.shape}, one id per sample."
        )
    return _by_ids(jnp.broadcast_to(group_ids, x.shape))


def _by_size(fn: str, group_size: int, name: str, x: Array) -> tuple[Over, Over]:
    _checks.count(fn, "group_size", group_size)
    if x.shape[-1] % group_size:
        raise ValueError(
            f"{fn}: `group_size` = {group_size} does not divide the {x.shape[-1]} "
            f"samples of `{name}`, of shape {x.shape}."
        )

    def over(reduce: Callable) -> Over:
        def reduced(x: Array) -> Array:
            split = x.reshape(*x.shape[:-1], x.shape[-1] // group_size, group_size)
            out = jnp.broadcast_to(reduce(split, -1, keepdims=True), split.shape)
            return out.reshape(x.shape)

        return reduced

    return over(jnp.sum), over(jnp.max)


def _by_ids(ids: Array) -> tuple[Over, Over]:
    shape = ids.shape
    ids = ids.reshape(math.prod(shape[:-1]), shape[-1])
    # Where an id would stand among the sorted: a number below n, one per group.
    labels = jax.vmap(lambda row: jnp.searchsorted(jnp.sort(row), row))(ids)

    def over(reduce: Callable) -> Over:
        def reduced(x: Array) -> Array:
            def row(x: Array, labels: Array) -> Array:
                return reduce(x, labels, num_segments=shape[-1])[labels]

            return jax.vmap(row)(x.reshape(ids.shape), labels).reshape(shape)

        return reduced

    return over(jax.ops.segment_sum), over(jax.ops.segment_max)
