"""The update step: exact gradients over microbatches and devices, optax, and guards."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from . import _checks
from ._types import (
    Controller,
    Learner,
    LossFn,
    Max,
    Mean,
    Metric,
    Metrics,
    Min,
    Scalar,
    TrainState,
)

AxisName = str | tuple[str, ...]


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
      TypeError: loss_fn does not return a `Mean` (or dict of them) and metrics.
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
    _checks.count(fn, "num_microbatches", num_microbatches)
    _rows(fn, batch, num_microbatches=num_microbatches)
    _check_axes(fn, batch, axis_name)
    params = _varying(params, axis_name)

    if num_microbatches == 1:
        counts = None
        if axis_name is not None:
            counts = _all_reduce(_counts(loss_fn, params, batch), axis_name)
        grads, loss, metrics = _part(loss_fn, params, batch, counts)
    else:
        # Strided, so that rows sharded over devices stay where they are.
        parts = jax.tree.map(
            lambda x: x.reshape(-1, num_microbatches, *x.shape[1:]).swapaxes(0, 1),
            batch,
        )
        counts = _all_reduce(_count_pass(loss_fn, params, parts), axis_name)

        def add(grads, part):
            more, loss, metrics = _part(loss_fn, params, part, counts)
            grads = jax.tree.map(lambda g, m: g + m.astype(g.dtype), grads, more)
            return grads, (loss, metrics)

        # Sums of half-precision gradients are kept in float32.
        zeros = jax.tree.map(lambda p: jnp.zeros_like(p, _checks.wide(p)), params)
        grads, stacked = jax.lax.scan(add, zeros, parts)
        loss, metrics = _reduce(stacked)
    grads = grads if axis_name is None else jax.lax.psum(grads, axis_name)
    loss, metrics = _all_reduce((loss, metrics), axis_name)
    return jax.tree.map(lambda g, p: g.astype(p.dtype), grads, params), loss, metrics


def learner(
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    *,
    num_epochs: int = 1,
    num_minibatches: int = 1,
    num_microbatches: int = 1,
    schedules: Mapping[str, Callable[[jax.Array], jax.Array]] | None = None,
    adaptive: Mapping[str, Controller] | None = None,
    minibatch_target_kl: Scalar | None = None,
    epoch_target_kl: Scalar | None = None,
    axis_name: AxisName | None = None,
) -> Learner:
    """Bind a loss and an optimiser into PPO's update: epochs of shuffled minibatches.

    Nothing is compiled here: `jax.jit(learner.update, donate_argnums=0)`, put it in a
    `scan`, or `vmap` a function that calls `learner` over seeds and hyper-parameters.

    A step is taken only if loss, gradient and update are finite; otherwise parameters
    and optimiser state stay as they were, and the step is counted: `skipped` in the
    metrics, in a row in `TrainState.skipped`, which `check_progress` turns into an
    error.

    Clip actor and critic separately; under a joint norm the critic's larger gradient
    starves the actor (at 64 environments and 32 updates of CartPole, purejaxrl's
    return is 84 with one norm and 237 with two):

        clip = optax.clip_by_global_norm(0.5)
        tx = optax.chain(optax.partition({"actor": clip, "critic": clip}, labels),
                         optax.adam(3e-4))

    with `labels` a pytree like params (or a function of params), `"actor"` or
    `"critic"` at each leaf.

    Args:
      loss_fn: `loss_fn(params, batch, **coefs) -> (loss, metrics)`, see `LossFn`.
      tx: any optax optimiser. Learning-rate schedules go in there; extra arguments
        it gets: `value`, the loss.
      num_epochs: passes over the batch.
      num_minibatches: optimiser steps per pass; must divide the rows. More than one
        shuffles the rows in every pass, and `update` needs a key.
      num_microbatches: parts per minibatch whose gradients add up, see
        `accumulate_grads`; saves memory, changes nothing else.
      schedules: functions of the count of steps taken (optax's schedules), by name;
        their values are passed to loss_fn as keyword arguments, as in
        `{"clip_eps": optax.linear_schedule(0.2, 0.1, 1000)}`.
      adaptive: controllers by name, such as `{"kl_coef": adaptive_kl(target=0.1)}`;
        their coefficients are passed to loss_fn likewise, and updated once per
        `update`.
      minibatch_target_kl: a minibatch whose `approx_kl` is above this is not stepped
        on, and ends the update. SB3's `target_kl=x` is 1.5 x here.
      epoch_target_kl: a pass whose last minibatch has an `approx_kl` above this is
        the last one. CleanRL's `target_kl`.
      axis_name: inside `jax.shard_map`, see `accumulate_grads`; each device then
        shuffles its own rows.

    Returns:
      `Learner(init, update)`. `update(state, batch, key=None)` returns the new state
      and metrics merged over all steps: loss_fn's, and `loss` (besides each term's
      name, for a dict), `grad_norm`, `skipped`, and with a target-KL `stopped`, the
      share of steps not made because of it. The key is consumed.

    Raises:
      TypeError: a count is not an integer, or loss_fn is not of the form above.
      ValueError: a count does not divide the rows, a target is not positive, the key
        is missing, or a metric that is asked for.

    Example:
      >>> import jax, jax.numpy as jnp, jaxppo, optax
      >>> def loss_fn(params, batch):
      ...     return jaxppo.token_mean((params - batch) ** 2), {}
      >>> learner = jaxppo.learner(loss_fn, optax.sgd(0.25), num_minibatches=2)
      >>> state = learner.init(jnp.array(0.0))
      >>> state, metrics = learner.update(state, jnp.ones(8), jax.random.key(0))
      >>> state.params, state.step
      (Array(0.75, dtype=float32), Array(2, dtype=int32))
    """
    fn = "learner"
    for name, value in (
        ("num_epochs", num_epochs),
        ("num_minibatches", num_minibatches),
        ("num_microbatches", num_microbatches),
    ):
        _checks.count(fn, name, value)
    targets = {
        "minibatch_target_kl": minibatch_target_kl,
        "epoch_target_kl": epoch_target_kl,
    }
    for name, value in targets.items():
        if value is not None:
            _checks.number(fn, name, value, "(0, inf]", jnp.float32)
    schedules, adaptive = dict(schedules or {}), dict(adaptive or {})
    if twice := schedules.keys() & adaptive.keys():
        raise ValueError(
            f"{fn}: {sorted(twice)} are in both `schedules` and `adaptive`."
        )
    tx = optax.with_extra_args_support(tx)
    can_stop = any(target is not None for target in targets.values())

    def init(params: Any) -> TrainState:
        coefs = {name: controller.init() for name, controller in adaptive.items()}
        # Each array its own: one that two leaves share can't be donated.
        step, skipped = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
        return TrainState(params, tx.init(params), step, skipped, coefs)

    def take_step(state: TrainState, batch: Any):
        coefs = {name: value(state.step) for name, value in schedules.items()}
        grads, loss, metrics = accumulate_grads(
            partial(loss_fn, **coefs, **state.coefs),
            state.params,
            batch,
            num_microbatches=num_microbatches,
            axis_name=axis_name,
        )
        value = _value(loss)
        # Optax's Adam promotes its step count, which a strict program forbids.
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = tx.update(
                grads, state.opt_state, state.params, value=value
            )
        finite = _all_finite((value, grads, updates))
        kl = _observed(fn, metrics, "approx_kl") if can_stop else jnp.zeros(())
        stop = kl > jnp.inf if minibatch_target_kl is None else kl > minibatch_target_kl
        taken = dataclasses.replace(
            state,
            params=optax.apply_updates(state.params, updates),
            opt_state=opt_state,
            step=state.step + 1,
            skipped=jnp.zeros_like(state.skipped),
        )
        left = dataclasses.replace(
            state, skipped=jnp.where(finite, state.skipped, state.skipped + 1)
        )
        state = jax.tree.map(partial(jnp.where, finite & ~stop), taken, left)
        one = jnp.ones((), value.dtype)
        metrics = dict(metrics) | (loss if isinstance(loss, dict) else {})
        metrics |= {
            "loss": Mean(value, one) if isinstance(loss, dict) else loss,
            "grad_norm": Mean(_norm(grads).astype(value.dtype), one),
            "skipped": Mean((~finite).astype(value.dtype), one),
        }
        return state, (metrics, stop, kl)

    def update(state: TrainState, batch: Any, key: jax.Array | None = None):
        rows = _rows(
            "learner.update",
            batch,
            num_minibatches=num_minibatches,
            num_microbatches=num_microbatches,
        )
        if num_minibatches > 1 and key is None:
            raise ValueError(
                f"learner.update: `key` is None, but num_minibatches = "
                f"{num_minibatches} shuffles the rows; pass a `jax.random.key`."
            )

        def minibatch(state_stopped, index):
            state, stopped = state_stopped
            part = batch if index is None else _take(batch, index)
            if not can_stop:
                state, (metrics, _, _) = take_step(state, part)
                return (state, stopped), (metrics, jnp.ones((), bool), None)
            shapes = jax.eval_shape(take_step, state, part)[1]
            nothing = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
            state, (metrics, stop, kl) = jax.lax.cond(
                stopped, lambda state, _: (state, nothing), take_step, state, part
            )
            return (state, stopped | stop), (metrics, ~stopped, kl)

        def epoch(state_stopped, key):
            index = [None]
            if num_minibatches > 1:
                order = jax.random.permutation(key, rows)
                index = order.reshape(num_minibatches, -1)
            state_stopped, out = _scan(minibatch, state_stopped, index)
            if epoch_target_kl is not None:
                state, stopped = state_stopped
                state_stopped = (state, stopped | (out[2][-1] > epoch_target_kl))
            return state_stopped, out[:2]

        keys = [None] * num_epochs if key is None else jax.random.split(key, num_epochs)
        start = (state, jnp.zeros((), bool))
        (state, _), (metrics, made) = _scan(epoch, start, keys)
        metrics, made = jax.tree.map(
            lambda x: x.reshape(-1, *x.shape[2:]), (metrics, made)
        )
        metrics = _reduce(metrics, made if can_stop else None)
        if can_stop:
            missed = (~made).astype(jnp.float32)
            metrics["stopped"] = Mean(jnp.sum(missed), jnp.sum(jnp.ones_like(missed)))
        coefs = {
            name: controller.update(
                state.coefs[name], _observed(fn, metrics, controller.metric)
            )
            for name, controller in adaptive.items()
        }
        return dataclasses.replace(state, coefs=coefs), metrics

    return Learner(init, update)


def finalize(metrics: Metrics) -> dict[str, jax.Array]:
    """Divide every `Mean`, once, at the very end.

    Args:
      metrics: by name, as `Learner.update` returns them; stacked by `scan` or `vmap`,
        too.

    Returns:
      Their values, by name.

    Raises:
      TypeError: something is not a `Mean`, `Max` or `Min`.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> metrics = {"loss": jaxppo.token_mean(jnp.array([1.0, 2.0]))}
      >>> jaxppo.finalize(metrics)
      {'loss': Array(1.5, dtype=float32)}
    """
    for name, metric in metrics.items():
        if not _is_metric(metric):
            raise TypeError(
                f"finalize: `{name}` is a {type(metric).__name__}; expected a "
                "`jaxppo.Mean` (or `Max`, `Min`), such as `token_mean` returns."
            )
    return {name: metric.value for name, metric in metrics.items()}


def check_progress(state: TrainState, *, max_skipped: int = 10) -> None:
    """Stop a run whose steps are all being skipped; call it between updates.

    Reads `state.skipped`, so it waits for the update that made the state.

    Args:
      state: as `Learner.update` returned it; with a leading axis for several seeds.
      max_skipped: skipped steps in a row that are too many.

    Raises:
      FloatingPointError: that many steps in a row were not finite.

    Example:
      >>> import jax.numpy as jnp, jaxppo, optax
      >>> learner = jaxppo.learner(lambda p, b: (jaxppo.token_mean(p * b), {}),
      ...                          optax.sgd(0.1))
      >>> jaxppo.check_progress(learner.init(jnp.array(1.0)))
    """
    _checks.count("check_progress", "max_skipped", max_skipped)
    skipped = np.max(np.asarray(state.skipped), initial=0)
    if skipped >= max_skipped:
        raise FloatingPointError(
            f"check_progress: the last {skipped} optimiser steps were skipped because "
            "loss, gradient or update was not finite. The parameters are those of the "
            "last good step. Look at the batch for NaN (rewards, log-probs of valid "
            "tokens), then at the learning rate."
        )


def _is_metric(x: Any) -> bool:
    return isinstance(x, (Mean, Max, Min))


def _reduce(stacked: Any, where: jax.Array | None = None) -> Any:
    return jax.tree.map(lambda m: m.reduce(where), stacked, is_leaf=_is_metric)


def _all_reduce(metrics: Any, axis_name: AxisName | None) -> Any:
    if axis_name is None:
        return metrics
    return jax.tree.map(lambda m: m.all_reduce(axis_name), metrics, is_leaf=_is_metric)


def _value(loss: Mean | Mapping[str, Mean]) -> jax.Array:
    if isinstance(loss, Mean):
        return loss.value
    return jnp.sum(jnp.stack([mean.value for mean in loss.values()]))


def _loss(loss_fn: LossFn, params: Any, batch: Any):
    """Calls loss_fn and checks what it returns."""
    out = loss_fn(params, batch)
    form = "expected (loss, metrics), loss a `jaxppo.Mean` or a dict of them"
    if not isinstance(out, tuple) or len(out) != 2:
        raise TypeError(f"loss_fn: returned {type(out).__name__}; {form}.")
    loss, metrics = out
    for name, mean in loss.items() if isinstance(loss, Mapping) else [("loss", loss)]:
        if not isinstance(mean, Mean):
            raise TypeError(f"loss_fn: `{name}` is a {type(mean).__name__}; {form}.")
    return loss if isinstance(loss, Mean) else dict(loss), dict(metrics)


def _counts(loss_fn: LossFn, params: Any, batch: Any) -> Any:
    """The loss with its totals zeroed: what is left depends on masks alone."""
    loss, _ = _loss(loss_fn, params, batch)
    return jax.tree.map(
        lambda mean: Mean(
            jnp.zeros_like(mean.total), jax.lax.stop_gradient(mean.count)
        ),
        loss,
        is_leaf=_is_metric,
    )


def _count_pass(loss_fn: LossFn, params: Any, parts: Any) -> Any:
    _, counts = jax.lax.scan(
        lambda _, part: (None, _counts(loss_fn, params, part)), None, parts
    )
    return _reduce(counts)


def _part(loss_fn: LossFn, params: Any, batch: Any, counts: Any):
    """Gradient of one microbatch's share of the loss, and its undivided loss."""

    def share(params):
        loss, metrics = _loss(loss_fn, params, batch)
        shared = jax.tree.map(
            lambda mean, whole: Mean(mean.total, jax.lax.stop_gradient(whole.count)),
            loss,
            loss if counts is None else counts,
            is_leaf=_is_metric,
        )
        return _value(shared), (loss, metrics)

    grads, (loss, metrics) = jax.grad(share, has_aux=True)(params)
    return grads, *jax.lax.stop_gradient((loss, metrics))


def _rows(fn: str, batch: Any, **parts: int) -> int:
    """The batch's number of rows, which all leaves share and the parts divide."""
    leaves = jax.tree_util.tree_leaves_with_path(batch)
    if not leaves:
        raise ValueError(f"{fn}: `batch` has no arrays.")
    sizes = {
        f"batch{jax.tree_util.keystr(path)}": np.shape(x)[:1] for path, x in leaves
    }
    (first, rows), *_ = sizes.items()
    for name, size in sizes.items():
        if size != rows or not size:
            raise ValueError(
                f"{fn}: `{name}` has {size} rows, but `{first}` has {rows}; every leaf "
                "needs the same leading axis, the rows."
            )
    names = " * ".join(f"`{name}` = {count}" for name, count in parts.items())
    product = int(np.prod(list(parts.values())))
    if rows[0] % product:
        raise ValueError(
            f"{fn}: {names} does not divide the batch's {rows[0]} rows; use a divisor, "
            f"or pad to {-rows[0] % product + rows[0]} rows with mask 0."
        )
    return rows[0]


def _take(batch: Any, index: jax.Array) -> Any:
    return jax.tree.map(
        lambda x: x.at[index].get(mode="promise_in_bounds", unique_indices=True), batch
    )


def _scan(step: Callable, carry: Any, xs: Any) -> tuple[Any, Any]:
    """`lax.scan`, without the loop where there is one step; `[None] * n` has no xs."""
    if len(xs) == 1:
        carry, out = step(carry, xs[0])
        return carry, jax.tree.map(lambda x: x[None], out)
    if isinstance(xs, list):
        return jax.lax.scan(step, carry, None, length=len(xs))
    return jax.lax.scan(step, carry, xs)


def _all_finite(tree: Any) -> jax.Array:
    leaves = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]
    return jnp.all(jnp.stack(leaves))


def _norm(grads: Any) -> jax.Array:
    squares = [jnp.sum(x.astype(_checks.wide(x)) ** 2) for x in jax.tree.leaves(grads)]
    return jnp.sqrt(jnp.sum(jnp.stack(squares)))


def _observed(fn: str, metrics: Metrics, name: str) -> jax.Array:
    if name not in metrics:
        raise ValueError(
            f"{fn}: the loss function reports no metric `{name}`, only "
            f"{sorted(metrics)}; `ppo_loss` reports `approx_kl`, and `kl` when it is "
            "given `ref_log_probs`."
        )
    return metrics[name].value


def _vma(x: Any) -> frozenset[str]:
    """The mesh axes an array varies over inside a `shard_map` that tracks them."""
    aval = jax.typeof(x)
    manual = getattr(aval, "manual_axis_type", None)  # from JAX 0.10
    return getattr(aval, "vma", frozenset()) if manual is None else manual.varying


def _check_axes(fn: str, batch: Any, axis_name: AxisName | None) -> None:
    named = {axis_name} if isinstance(axis_name, str) else set(axis_name or ())
    varies = frozenset().union(*(_vma(x) for x in jax.tree.leaves(batch)))
    if left_out := varies - named:
        raise ValueError(
            f"{fn}: the batch is sharded over mesh axes {sorted(left_out)} that "
            f"`axis_name` = {axis_name!r} leaves out: each device would divide by its "
            f"own counts. Pass axis_name={tuple(sorted(varies | named))!r}."
        )


def _varying(params: Any, axis_name: AxisName | None) -> Any:
    """Marks replicated parameters as each device's own, so that we add their gradients.

    `shard_map` would otherwise add them over devices by itself, or not, depending on
    its `check_vma`.
    """
    if axis_name is None:
        return params
    names = (axis_name,) if isinstance(axis_name, str) else axis_name

    def mark(x):
        missing = tuple(name for name in names if name not in _vma(x))
        if not missing:
            return x
        if pvary := getattr(jax.lax, "pvary", None):  # before JAX 0.9
            return pvary(x, missing)
        return jax.lax.pcast(x, missing, to="varying")

    return jax.tree.map(mark, params)
