"""The critic's losses."""

import functools
from collections.abc import Callable

import jax
from jaxtyping import ScalarLike

import jaxppo


def value_loss(
    values: jax.Array,
    old_values: jax.Array,
    returns: jax.Array,
    mask: jax.Array,
    *,
    clip_eps: ScalarLike = 0.5,
    error: Callable[[jax.Array, jax.Array], jax.Array] = jaxppo.squared_value,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """Half the larger of two squared errors, a mean over tokens.

    AReaL 1.0.4, functional.py `ppo_critic_loss_fn`, "mse". Its `clip_ratio` counts
    tokens, too, that are not clipped but that v_old + (v - v_old) rounds away from R.
    """
    loss = jaxppo.clipped_value(
        values, old_values, returns, mask, clip_eps=clip_eps, error=error
    )
    clipped = loss > error(values, returns)
    loss, mean = jaxppo.token_mean(loss, mask), jaxppo.token_mean
    metrics: dict[str, jaxppo.Metric] = {
        "critic_loss": loss,
        "clip_ratio": mean(clipped.astype(loss.total.dtype), mask),
        "new_value": mean(values, mask),
        "old_value": mean(old_values, mask),
        "target_value": mean(returns, mask),
    }
    return loss, jax.lax.stop_gradient(metrics)


def huber_value_loss(
    values: jax.Array,
    old_values: jax.Array,
    returns: jax.Array,
    mask: jax.Array,
    *,
    clip_eps: ScalarLike = 0.5,
    delta: ScalarLike = 10.0,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """The larger of two Huber errors, linear beyond `delta`, a mean over tokens.

    AReaL 1.0.4, functional.py `ppo_critic_loss_fn`, "huber", whose delta is 10 always.
    """
    error = functools.partial(jaxppo.huber_value, delta=delta)
    return value_loss(values, old_values, returns, mask, clip_eps=clip_eps, error=error)
