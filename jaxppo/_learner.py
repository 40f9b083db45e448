"""The update step: epochs, minibatches, an optax optimiser, and guards."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from . import _checks, _mesh
from ._accumulate import accumulate_grads, is_metric, loss_value, reduce
from ._guard import check_state, guarded_step
from ._shuffle import shuffled
from ._types import (
    Controller,
    Learner,
    LossFn,
    Mean,
    Metric,
    Metrics,
    Scalar,
    TrainState,
)


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
    prepare: Callable[[Any], Any] | None = None,
    axis_name: _mesh.AxisName | None = None,
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
      prepare: a function of a minibatch, called before it is cut into microbatches,
        for what must see all its rows: `lambda b: b | {"advantages":
        jaxppo.whiten(b["advantages"])}`. Inside `shard_map` it sees a device's own.
      axis_name: inside `jax.shard_map`, see `accumulate_grads`; each device then
        shuffles its own rows.

    Returns:
      `Learner(init, update)`. `update(state, batch, key=None)` returns the new state
      and metrics: loss_fn's (and each term, for a dict) merged over the steps that were
      not skipped; over all steps `loss`, `grad_norm`, `skipped` (the share of steps
      skipped; its total is their number), and with a target-KL `stopped`, the share of
      steps not made because of it. The key is consumed.

    Raises:
      TypeError: a count is not an integer, or loss_fn is not of the form above.
      ValueError: a count does not divide the rows, a target is not positive, the key
        is missing, or a metric that is asked for.

    Example:
      >>> import jax, jax.numpy as jnp, jaxppo, optax
      >>> def loss_fn(params, batch):
      ...     return jaxppo.token_mean((params - batch) ** 2), {}
      >>> learner = jaxppo.learner(loss_fn, optax.sgd(0.25), num_minibatches=2)
      >>> state = learner.init(jnp.zeros(()))
      >>> state, metrics = learner.update(state, jnp.ones(8), jax.random.key(0))
      >>> state.params, state.step
      (Array(0.75, dtype=float32), Array(2, dtype=int32))
    """
    counts = {
        "num_epochs": num_epochs,
        "num_minibatches": num_minibatches,
        "num_microbatches": num_microbatches,
    }
    targets = {
        "minibatch_target_kl": minibatch_target_kl,
        "epoch_target_kl": epoch_target_kl,
    }
    schedules, adaptive = dict(schedules or {}), dict(adaptive or {})
    _check_arguments(loss_fn, prepare, tx, counts, targets, schedules, adaptive)
    can_stop = any(target is not None for target in targets.values())
    tx = optax.with_extra_args_support(tx)

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
            batch if prepare is None else prepare(batch),
            num_microbatches=num_microbatches,
            axis_name=axis_name,
        )
        kl = _observed(metrics, "approx_kl") if can_stop else jnp.zeros(())
        stop = jnp.zeros((), bool)
        if minibatch_target_kl is not None:
            stop = kl > jnp.asarray(minibatch_target_kl, kl.dtype)
        norm = _norm(grads)
        state, finite = guarded_step(tx, state, grads, norm, loss_value(loss), ~stop)
        terms = {} if isinstance(loss, Mean) else loss
        return state, (metrics | terms, _own(loss, norm, finite), stop, kl)

    def minibatch(batch: Any, state_stopped: Any, index: jax.Array | None):
        state, stopped = state_stopped
        part = batch if index is None else _take(batch, index)
        if not can_stop:
            state, (metrics, own, _, kl) = take_step(state, part)
            return (state, stopped), (metrics, own, ~stopped, kl)
        shapes = jax.eval_shape(take_step, state, part)[1]
        nothing = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        state, (metrics, own, stop, kl) = jax.lax.cond(
            stopped, lambda state, _: (state, nothing), take_step, state, part
        )
        return (state, stopped | stop), (metrics, own, ~stopped, kl)

    def epoch(batch: Any, rows: int, state_stopped: Any, key: jax.Array | None):
        index: Any = [None]
        if num_minibatches > 1 and key is not None:
            index = shuffled(key, rows)
            index = index.reshape(num_minibatches, -1)
        out = _scan(partial(minibatch, batch), state_stopped, index)
        (state, stopped), (metrics, own, made, kl) = out
        if epoch_target_kl is not None:
            stopped = stopped | (kl[-1] > epoch_target_kl)
        return (state, stopped), (metrics, own, made)

    def update(state: TrainState, batch: Any, key: jax.Array | None = None):
        name = "learner.update"
        parts = {
            "num_minibatches": num_minibatches,
            "num_microbatches": num_microbatches,
        }
        rows = _checks.rows(name, batch, **parts)
        check_state(tx, state)
        if num_minibatches > 1 and key is None:
            raise ValueError(
                f"{name}: `key` is None, but num_minibatches = {num_minibatches} "
                "shuffles the rows; pass a `jax.random.key`."
            )
        keys: Any = [None] * num_epochs
        keys = keys if key is None else jax.random.split(key, num_epochs)
        start = (state, jnp.zeros((), bool))
        (state, _), stacked = _scan(partial(epoch, batch, rows), start, keys)
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), stacked)
        metrics, own, made = flat
        # A step that was skipped shows in `loss`; what else it measured is not counted.
        metrics = reduce(metrics, made & (own["skipped"].total == 0))
        metrics |= reduce(own, made)
        if can_stop:
            missed = (~made).astype(jnp.float32)
            metrics["stopped"] = Mean(jnp.sum(missed), jnp.sum(jnp.ones_like(missed)))
        coefs = {
            name: controller.update(
                state.coefs[name], _observed(metrics, controller.metric)
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
        if not is_metric(metric):
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
      TypeError: state is not a `TrainState`, or max_skipped not an integer.
      FloatingPointError: that many steps in a row were not finite.

    Example:
      >>> import jax.numpy as jnp, jaxppo, optax
      >>> learner = jaxppo.learner(lambda p, b: (jaxppo.token_mean(p * b), {}),
      ...                          optax.sgd(0.1))
      >>> jaxppo.check_progress(learner.init(jnp.array(1.0)))
    """
    _checks.count("check_progress", "max_skipped", max_skipped)
    if not hasattr(state, "skipped"):
        raise TypeError(
            f"check_progress: `state` is a {type(state).__name__}; expected the "
            "`TrainState` that `Learner.update` returned."
        )
    # On its devices: a process may hold some of the seeds only.
    skipped = int(jnp.max(state.skipped, initial=0))
    if skipped >= max_skipped:
        raise FloatingPointError(
            f"check_progress: the last {skipped} optimiser steps were skipped because "
            "loss, gradient or update was not finite. The parameters are those of the "
            "last good step. Look at the batch for NaN (rewards, log-probs of valid "
            "tokens), then at the learning rate."
        )


def _check_arguments(
    loss_fn: Any,
    prepare: Any,
    tx: Any,
    counts: Mapping[str, int],
    targets: Mapping[str, Scalar | None],
    schedules: Mapping[str, Any],
    adaptive: Mapping[str, Any],
) -> None:
    fn = "learner"
    _checks.function(fn, "loss_fn", loss_fn, "loss_fn(params, batch)")
    if not isinstance(tx, optax.GradientTransformation):
        raise TypeError(
            f"{fn}: `tx` is {tx!r}; expected an optax optimiser, such as "
            "`optax.adam(3e-4)`."
        )
    if prepare is not None:
        _checks.function(fn, "prepare", prepare, "prepare(minibatch)")
    for name, value in counts.items():
        _checks.count(fn, name, value)
    for name, target in targets.items():
        if target is not None:
            _checks.number(fn, name, target, "(0, inf]", jnp.float32)
    if twice := schedules.keys() & adaptive.keys():
        raise ValueError(
            f"{fn}: {sorted(twice)} are in both `schedules` and `adaptive`."
        )
    example = "optax.linear_schedule(0.2, 0.1, 1000)"
    for name, schedule in schedules.items():
        _checks.function(fn, f"schedules[{name!r}]", schedule, example)
    for name, controller in adaptive.items():
        if not isinstance(controller, Controller):
            raise TypeError(
                f"{fn}: `adaptive[{name!r}]` is {controller!r}; expected a "
                "`jaxppo.Controller`, such as `jaxppo.adaptive_kl(target=0.1)`."
            )


def _own(
    loss: Mean | dict[str, Mean], grad_norm: jax.Array, finite: jax.Array
) -> dict[str, Metric]:
    """The learner's own metrics of one step."""
    value = loss_value(loss)
    one = jnp.ones((), value.dtype)
    return {
        "loss": Mean(value, one),
        "grad_norm": Mean(grad_norm.astype(value.dtype), one),
        "skipped": Mean((~finite).astype(value.dtype), one),
    }


def _take(batch: Any, index: jax.Array) -> Any:
    return jax.tree.map(lambda x: _mesh.take_rows(jnp.asarray(x), index), batch)


def _scan(step: Callable, carry: Any, xs: Any) -> tuple[Any, Any]:
    """`lax.scan`, without the loop where there is one step; `[None] * n` has no xs."""
    if len(xs) == 1:
        carry, out = step(carry, xs[0])
        return carry, jax.tree.map(lambda x: x[None], out)
    if isinstance(xs, list):
        return jax.lax.scan(step, carry, None, length=len(xs))
    return jax.lax.scan(step, carry, xs)


def _norm(grads: Any) -> jax.Array:
    squares = [jnp.sum(x.astype(_checks.wide(x)) ** 2) for x in jax.tree.leaves(grads)]
    return jnp.sqrt(jnp.sum(jnp.stack(squares)))


def _observed(metrics: Metrics, name: str) -> jax.Array:
    if name not in metrics:
        raise ValueError(
            f"learner: the loss function reports no metric `{name}`, only "
            f"{sorted(metrics)}; `ppo_loss` reports `approx_kl`, and `kl` when it is "
            "given `ref_log_probs`."
        )
    return metrics[name].value
