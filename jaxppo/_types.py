"""Types every floor speaks: what is merged, what is carried, what is called."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import (
    TYPE_CHECKING,
    Any,
    NamedTuple,
    Protocol,
    TypeAlias,
    runtime_checkable,
)

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer, ScalarLike

# Shapes, as annotations: `*s` is any shape, time (if there is one) last. `PerSequence`
# may also have 1 where `PerToken` has the length of the sequence.
PerToken: TypeAlias = Float[Array, "*s"]
PerSequence: TypeAlias = Float[Array, "*#s"]
Mask: TypeAlias = Bool[Array, "*s"] | Integer[Array, "*s"]
Scalar: TypeAlias = ScalarLike

# Without time: a number per row of `(*b, size)`, where a row is a distribution, say.
Rows: TypeAlias = Float[Array, "*b"]
RowMask: TypeAlias = Bool[Array, "*b"] | Integer[Array, "*b"]

# What a field of a pytree holds: an array, but while a tree is mapped also its shape,
# its sharding or None, so that a checker at run time must let anything pass.
if TYPE_CHECKING:
    Leaf: TypeAlias = jax.Array
else:
    Leaf = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mean:
    """A mean that has not been divided yet: add `Mean`s, never average them.

    Rows, microbatches, devices and logging windows merge with `+`, exactly, however
    unevenly the tokens are spread; `value` divides, once, at the very end. A `Mean`
    of count 0 is its total: nothing counted gives 0, and a plain sum stays a sum.

    Attributes:
      total: sum of what is averaged.
      count: how many entries (or how much weight) were summed, of the same shape.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> short = jaxppo.Mean(jnp.array(3.0), jnp.array(1.0))
      >>> long = jaxppo.Mean(jnp.array(9.0), jnp.array(5.0))
      >>> float((short + long).value)  # not the mean of 3.0 and 1.8
      2.0
    """

    total: Leaf
    count: Leaf

    def __add__(self, other: Mean) -> Mean:
        """Merge with another part of the *same* mean; different losses add by value."""
        if not isinstance(other, Mean):
            return NotImplemented
        return Mean(self.total + other.total, self.count + other.count)

    def __radd__(self, other: int) -> Mean:
        """Let the builtin `sum` start from 0."""
        return self if isinstance(other, int) and other == 0 else NotImplemented

    def __mul__(self, coef: Scalar) -> Mean:
        """Scale the mean: its total is multiplied, its count stays."""
        if isinstance(coef, Mean):
            return NotImplemented
        return Mean(self.total * coef, self.count)

    __rmul__ = __mul__

    @property
    def value(self) -> jax.Array:
        """The mean itself, total / count."""
        return self.total / jnp.where(self.count == 0, 1, self.count)

    def reduce(self, where: jax.Array | None = None) -> Mean:
        """Merge `Mean`s stacked along axis 0 (by `scan` or `vmap`)."""
        return Mean(
            jnp.sum(self.total, 0, where=_rows(where, self.total)),
            jnp.sum(self.count, 0, where=_rows(where, self.count)),
        )

    def all_reduce(self, axis_name: str | tuple[str, ...]) -> Mean:
        """Merge over the devices of a `shard_map` axis."""
        return jax.lax.psum(self, axis_name)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Max:
    """A maximum, merged with `+` like a `Mean`: for metrics such as the largest ratio.

    Attributes:
      value: the largest entry so far; -inf where there was none.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> float((jaxppo.Max(jnp.array(1.5)) + jaxppo.Max(jnp.array(0.5))).value)
      1.5
    """

    value: Leaf

    def __add__(self, other: Max) -> Max:
        """Merge with the maximum of another part."""
        return Max(jnp.maximum(self.value, other.value))

    def reduce(self, where: jax.Array | None = None) -> Max:
        """Merge maxima stacked along axis 0."""
        where = _rows(where, self.value)
        return Max(jnp.max(self.value, 0, initial=-jnp.inf, where=where))

    def all_reduce(self, axis_name: str | tuple[str, ...]) -> Max:
        """Merge over the devices of a `shard_map` axis."""
        return jax.lax.pmax(self, axis_name)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Min:
    """A minimum, merged with `+` like a `Mean`: for metrics such as the smallest ratio.

    Attributes:
      value: the smallest entry so far; inf where there was none.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> float((jaxppo.Min(jnp.array(1.5)) + jaxppo.Min(jnp.array(0.5))).value)
      0.5
    """

    value: Leaf

    def __add__(self, other: Min) -> Min:
        """Merge with the minimum of another part."""
        return Min(jnp.minimum(self.value, other.value))

    def reduce(self, where: jax.Array | None = None) -> Min:
        """Merge minima stacked along axis 0."""
        where = _rows(where, self.value)
        return Min(jnp.min(self.value, 0, initial=jnp.inf, where=where))

    def all_reduce(self, axis_name: str | tuple[str, ...]) -> Min:
        """Merge over the devices of a `shard_map` axis."""
        return jax.lax.pmin(self, axis_name)


# What is merged with `+`, and divided or read at the end: `Max(jnp.max(ratio))`.
Metric: TypeAlias = Mean | Max | Min
# Metrics by name, as a loss function reports them: `{"entropy": token_mean(entropy)}`.
Metrics: TypeAlias = Mapping[str, Metric]


def _rows(where: jax.Array | None, x: jax.Array) -> jax.Array | None:
    """Which rows count, with the axes of what has rows."""
    if where is None:
        return None
    return where.reshape(where.shape + (1,) * (x.ndim - 1))


class Advantages(NamedTuple):
    """What an estimator returns: the policy's signal and the value target it implies.

    Attributes:
      advantages: shape `(*batch, time)`.
      returns: shape `(*batch, time)`.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> advantages, returns = jaxppo.gae(jnp.array([0.0, 1.0]), jnp.zeros(2), 0.5)
      >>> returns
      Array([0.475, 1.   ], dtype=float32)
    """

    advantages: Leaf
    returns: Leaf


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that an update carries from one call to the next; save it to resume exactly.

    Attributes:
      params: any pytree of floating-point arrays.
      opt_state: the optimiser's state.
      step: optimiser steps taken, int32; schedules are read at this count.
      skipped: steps skipped in a row because something was not finite, int32.
      coefs: adaptive coefficients by name, such as `kl_coef`.

    Example:
      >>> import jax, jax.numpy as jnp, jaxppo, optax
      >>> loss_fn = lambda params, batch: (jaxppo.token_mean(params * batch), {})
      >>> state = jaxppo.learner(loss_fn, optax.sgd(0.1)).init(jnp.zeros(()))
      >>> state.step, len(jax.tree.leaves(state))  # params, step, skipped
      (Array(0, dtype=int32), 3)
    """

    params: Any
    opt_state: Any
    step: Leaf
    skipped: Leaf
    coefs: dict[str, Leaf]


class Learner(NamedTuple):
    """A pair of pure functions, made by `learner`.

    Attributes:
      init: `init(params) -> TrainState`.
      update: `update(state, batch, key=None) -> (TrainState, metrics)`; the key is
        consumed.

    Example:
      >>> import jax.numpy as jnp, jaxppo, optax
      >>> loss_fn = lambda params, batch: (jaxppo.token_mean(params * batch), {})
      >>> init, update = jaxppo.learner(loss_fn, optax.sgd(0.5))
      >>> update(init(jnp.zeros(())), jnp.ones(4))[0].params
      Array(-0.5, dtype=float32)
    """

    init: Callable[[Any], TrainState]
    update: Callable[..., tuple[TrainState, dict[str, Metric]]]


class Controller(NamedTuple):
    """A pair of pure functions that adapt one coefficient to one metric.

    Attributes:
      init: `init() -> coef`, the first value.
      update: `update(coef, observed) -> coef`, after each call of `Learner.update`.
      metric: the metric it observes, a key of what the loss function reports.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> halve = lambda coef, kl: coef * jnp.where(kl < 0.01, 0.5, 1.0)
      >>> controller = jaxppo.Controller(lambda: jnp.array(0.5), halve, "kl")
      >>> float(controller.update(controller.init(), jnp.array(0.001)))
      0.25
    """

    init: Callable[[], jax.Array]
    update: Callable[[jax.Array, jax.Array], jax.Array]
    metric: str


@runtime_checkable
class Aggregator(Protocol):
    """How per-token losses become one number: `token_mean`, `sequence_mean`, ...

    Example:
      >>> import functools, jax.numpy as jnp, jaxppo
      >>> per_token, mask = jnp.ones((2, 4)), jnp.arange(8).reshape(2, 4) < 6
      >>> aggregate = functools.partial(jaxppo.sequence_sum, scale=1 / 4)
      >>> aggregate(per_token, mask).value  # (4 / 4 + 2 / 4) / 2
      Array(0.75, dtype=float32)
    """

    def __call__(self, per_token: jax.Array, mask: jax.Array | None = None, /) -> Mean:
        """Reduce to a `Mean`."""
        ...


# What `learner` differentiates: `loss_fn(params, batch, **coefs) -> (loss, metrics)`.
# The loss is a `Mean`, or a dict of `Mean`s whose values are added (for terms of
# different denominators); scheduled and adaptive coefficients come in as keywords:
# `lambda params, batch: (jaxppo.token_mean((params - batch) ** 2), {})`.
LossFn: TypeAlias = Callable[..., tuple[Mean | Mapping[str, Mean], Metrics]]
