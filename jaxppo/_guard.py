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
    grad_norm: jax.Array,
    loss: jax.Array,
    wanted: jax.Array,
) -> tuple[TrainState, jax.Array]:
    """The state after a step, or as it was if the step is not wanted or not finite.

    Neither is a gradient whose squares overflow: Adam's second moment would be infinite
    for good, and a clip by the global norm would make the update 0, unseen.

    Large updates are computed twice on CPUs: XLA does not fuse the choice there, and
    would keep it whole. Elsewhere it does, and may lose a condition's shardings.
    """

    def taken(params: Any, opt_state: Any) -> tuple[Any, Any, Any]:
        # Optax promotes step counts and rates, which a strict program forbids.
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = tx.update(grads, opt_state, params, value=loss)
            return optax.apply_updates(params, updates), opt_state, updates

    _, opt_state, updates = taken(state.params, state.opt_state)
    # Moments in float16 overflow where float32 does not.
    moments = [x for x in jax.tree.leaves(opt_state) if x.dtype == jnp.float16]
    finite = _all_finite((loss, grad_norm, updates, moments))
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


def check_state(tx: optax.GradientTransformation, state: TrainState) -> None:
    """Raises where the optimiser's state is not of these parameters.

    Optax broadcasts one with the other, and a parameter grows.
    """
    expected = _shapes(jax.eval_shape(tx.init, state.params))
    found = _shapes(state.opt_state)
    for path in expected | found:
        if path not in found:
            wrong = "is missing"
        elif path not in expected:
            wrong = "is not in that of `state.params`"
        elif found[path] != expected[path]:
            wrong = (
                f"has shape {found[path]}, but `state.params` takes {expected[path]}"
            )
        else:
            continue
        raise ValueError(
            f"learner.update: `state.opt_state{path}` {wrong}; make both by "
            "`learner.init(params)`."
        )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): jnp.shape(x) for path, x in leaves}


def _all_finite(tree: Any) -> jax.Array:
    leaves = jax.tree.leaves(tree)
    if _small(tree):
        # A NaN's or an infinity's maximum is itself. On CPUs a maximum is computed many
        # entries at a time; `all` is not, but holds no array of what it is asked of.
        leaves = [jnp.max(jnp.abs(x), initial=0) for x in leaves]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in leaves]))


def _small(tree: Any) -> bool:
    return sum(x.size for x in jax.tree.leaves(tree)) < SMALL
