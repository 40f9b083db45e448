"""An optimiser's step, taken only if everything about it is finite."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ._types import TrainState

SMALL = 1_000_000  # numbers: a core's cache holds parameters, gradients and moments


def guarded_step(
    tx: optax.GradientTransformationExtraArgs,
    state: TrainState,
    grads: Any,
    loss: jax.Array,
    wanted: jax.Array,
) -> tuple[TrainState, jax.Array]:
    """The state after a step, or as it was if the step is not wanted or not finite.

    Large updates are computed twice on CPUs: XLA does not fuse the choice there, and
    would keep it whole. Elsewhere it does, and may lose a condition's shardings.
    """

    def taken(params: Any, opt_state: Any) -> tuple[Any, Any, Any]:
        # Optax's Adam promotes its step count, which a strict program forbids.
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = tx.update(grads, opt_state, params, value=loss)
        return optax.apply_updates(params, updates), opt_state, updates

    finite = _all_finite((loss, grads, taken(state.params, state.opt_state)[2]))
    go = finite & wanted

    def chosen(*old: Any) -> Any:
        return jax.tree.map(partial(jnp.where, go), taken(*old)[:2], old)

    def computed_if_taken(*old: Any) -> Any:
        return jax.lax.cond(go, lambda *old: taken(*old)[:2], lambda *old: old, *old)

    params, opt_state = jax.lax.platform_dependent(
        *(state.params, state.opt_state),
        cpu=chosen if _small(state.params) else computed_if_taken,
        default=chosen,
    )
    step = state.step + go.astype(jnp.int32)
    skipped = jnp.where(go, 0, state.skipped + (~finite).astype(jnp.int32))
    return TrainState(params, opt_state, step, skipped, state.coefs), finite


def _all_finite(tree: Any) -> jax.Array:
    leaves = jax.tree.leaves(tree)
    if _small(tree):
        # A NaN's or an infinity's maximum is itself. On CPUs a maximum is computed many
        # entries at a time; `all` is not, but holds no array of what it is asked of.
        leaves = [jnp.max(jnp.abs(x), initial=0) for x in leaves]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in leaves]))


def _small(tree: Any) -> bool:
    return sum(x.size for x in jax.tree.leaves(tree)) < SMALL
