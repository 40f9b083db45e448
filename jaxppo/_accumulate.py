"""Exact gradients: a batch in parts, over microbatches and devices, as if in one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from . import _checks, _mesh
from ._mesh import AxisName
from ._types import LossFn, Max, Mean, Metric, Min


def accumulate_grads(
    loss_fn: LossFn,
    params: Any,
    batch: Any,
    *,
    num_microbatches: int = 1,
    axis_name: AxisName | None = None,
) -> tuple[Any, Mean | dict[str, Mean], dict[str, Metric]]:
    """The gradient of a whole batch's loss, exact, one microbatch at a time.

    The loss is the sum over terms of total / count, the counts being the whole
    batch's. They depend on masks alone, so they are summed first, in a pass from
    which the compiler drops the forward computation; then each microbatch's gradient
    of total / count is added up. Averages of microbatches' averages, as in
    `optax.MultiSteps`, are wrong as soon as masks are ragged.

    Args:
      loss_fn: `loss_fn(params, batch) -> (loss, metrics)`, see `LossFn`. Statistics
        over the batch (`whiten`) belong before it: inside they would be those of a
        microbatch. For dropout, put keys in the batch, one per row.
      params: any pytree of floating-point arrays.
      batch: any pytree of arrays with a common leading axis, the rows.
      num_microbatches: how many parts to cut the rows into; must divide them.
      axis_name: inside `jax.shard_map`, the mesh axis (or axes) the rows are sharded
        over; everything returned is then of the whole batch. Under `jit` with
        sharded arrays leave it out.

    Returns:
      `(grads, loss, metrics)`: grads like params, in their dtypes, loss and metrics
      merged over microbatches and devices, undivided.

    Raises:
      TypeError: loss_fn is not a function, or does not return a `Mean` (or dict of
        them) and metrics.
      ValueError: num_microbatches does not divide the rows, rows differ among the
        batch's leaves, or the batch varies over a mesh axis that `axis_name` leaves
        out.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> def loss_fn(params, batch):
      ...     return jaxppo.token_mean(params * batch["x"], batch["mask"]), {}
      >>> batch = {"x": jnp.array([[1.0, 3.0], [8.0, 0.0]]),
      ...          "mask": jnp.array([[1, 1], [1, 0]])}
      >>> grads, loss, _ = jaxppo.accumulate_grads(
      ...     loss_fn, jnp.array(2.0), batch, num_microbatches=2)
      >>> grads, loss.value  # not (2 + 8) / 2 = 5
      (Array(4., dtype=float32), Array(8., dtype=float32))
    """
    fn = "accumulate_grads"
    _checks.function(fn, "loss_fn", loss_fn, "loss_fn(params, batch)")
    _checks.count(fn, "num_microbatches", num_microbatches)
    _checks.rows(fn, batch, num_microbatches=num_microbatches)
    _check_axes(fn, batch, axis_name)
    params = _varying(params, axis_name)

    if num_microbatches == 1:
        counts = None
        if axis_name is not None:
            counts = _all_reduce(_counts(loss_fn, params, batch), axis_name)
        grads, loss, metrics = _part(loss_fn, params, batch, counts)
    else:
        split = lambda x: _mesh.split_rows(jnp.asarray(x), num_microbatches)
        parts = jax.tree.map(split, batch)
        counts = _all_reduce(_count_pass(loss_fn, params, parts), axis_name)

        def add(grads, part):
            more, loss, metrics = _part(loss_fn, params, part, counts)
            grads = jax.tree.map(lambda g, m: g + m.astype(g.dtype), grads, more)
            return grads, (loss, metrics)

        # Sums of half-precision gradients are kept in float32.
        zeros = jax.tree.map(lambda p: jnp.zeros_like(p, _checks.wide(p)), params)
        grads, stacked = jax.lax.scan(add, zeros, parts)
        loss, metrics = reduce(stacked)
    grads = grads if axis_name is None else jax.lax.psum(grads, axis_name)
    loss, metrics = _all_reduce((loss, metrics), axis_name)
    return jax.tree.map(lambda g, p: g.astype(p.dtype), grads, params), loss, metrics


def loss_value(loss: Mean | Mapping[str, Mean]) -> jax.Array:
    """The number that is minimised: the sum of the terms' values."""
    if isinstance(loss, Mean):
        return loss.value
    return jnp.sum(jnp.stack([mean.value for mean in loss.values()]))


def reduce(stacked: Any, where: jax.Array | None = None) -> Any:
    """Merge metrics (any tree of them) stacked along axis 0."""
    return jax.tree.map(lambda m: m.reduce(where), stacked, is_leaf=is_metric)


def _all_reduce(metrics: Any, axis_name: AxisName | None) -> Any:
    if axis_name is None:
        return metrics
    return jax.tree.map(lambda m: m.all_reduce(axis_name), metrics, is_leaf=is_metric)


def is_metric(x: Any) -> bool:
    """Whether a node of a tree is one metric, not a tree of them."""
    return isinstance(x, (Mean, Max, Min))


def loss_and_metrics(loss_fn: LossFn, params: Any, batch: Any):
    """Calls loss_fn and checks what it returns."""
    out = loss_fn(params, batch)
    form = "expected (loss, metrics), loss a `jaxppo.Mean` or a dict of them"
    if not isinstance(out, tuple) or len(out) != 2:
        raise TypeError(f"loss_fn: returned {type(out).__name__}; {form}.")
    loss, metrics = out
    for name, mean in loss.items() if isinstance(loss, Mapping) else [("loss", loss)]:
        if not isinstance(mean, Mean):
            raise TypeError(f"loss_fn: `{name}` is a {type(mean).__name__}; {form}.")
    for name, metric in metrics.items():
        if not is_metric(metric):
            raise TypeError(
                f"loss_fn: metric `{name}` is a {type(metric).__name__}; expected a "
                "`jaxppo.Mean` (or `Max`, `Min`), such as `token_mean` returns."
            )
    return loss if isinstance(loss, Mean) else dict(loss), dict(metrics)


def _counts(loss_fn: LossFn, params: Any, batch: Any) -> Any:
    """The loss with its totals zeroed: what is left depends on masks alone."""
    loss, _ = loss_and_metrics(loss_fn, params, batch)
    return jax.tree.map(
        lambda mean: Mean(
            jnp.zeros_like(mean.total), jax.lax.stop_gradient(mean.count)
        ),
        loss,
        is_leaf=is_metric,
    )


def _count_pass(loss_fn: LossFn, params: Any, parts: Any) -> Any:
    _, counts = jax.lax.scan(
        lambda _, part: (None, _counts(loss_fn, params, part)), None, parts
    )
    return reduce(counts)


def _part(loss_fn: LossFn, params: Any, batch: Any, counts: Any):
    """Gradient of one microbatch's share of the loss, and its undivided loss."""

    def share(params):
        loss, metrics = loss_and_metrics(loss_fn, params, batch)
        shared = jax.tree.map(
            lambda mean, whole: Mean(mean.total, jax.lax.stop_gradient(whole.count)),
            loss,
            loss if counts is None else counts,
            is_leaf=is_metric,
        )
        return loss_value(shared), (loss, metrics)

    grads, (loss, metrics) = jax.grad(share, has_aux=True)(params)
    return grads, *jax.lax.stop_gradient((loss, metrics))


def _check_axes(fn: str, batch: Any, axis_name: AxisName | None) -> None:
    named = set(_mesh.names(axis_name))
    varies = _mesh.varies(batch)
    if left_out := varies - named:
        raise ValueError(
            f"{fn}: the batch is sharded over mesh axes {sorted(left_out)} that "
            f"`axis_name` = {axis_name!r} leaves out: each device would divide by its "
            f"own counts. Pass axis_name={tuple(sorted(varies | named))!r}."
        )
    for name in named - varies:
        if name in _mesh.varies(jax.lax.axis_index(name)):  # `shard_map` does track
            raise ValueError(
                f"{fn}: `axis_name` = {axis_name!r}, but the batch is the same all "
                f"along mesh axis {name!r}: its gradient would count once a device. "
                f"Shard the batch over {name!r} (`in_specs`), or leave the axis out."
            )


def _varying(params: Any, axis_name: AxisName | None) -> Any:
    """Marks replicated parameters as each device's own, so that we add their gradients.

    `shard_map` would otherwise add them over devices by itself, or not, depending on
    its `check_vma`.
    """
    return _mesh.varying(params, _mesh.names(axis_name))
