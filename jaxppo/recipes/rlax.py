"""rlax 0.1.9: functions of one sequence, without masks.

rlax takes `(time,)` and needs `jax.vmap` for more; these take `(*batch, time)` and an
optional mask.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import ScalarLike

import jaxppo


def clipped_surrogate_pg_loss(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array | None = None,
    *,
    clip_eps: ScalarLike,
) -> jaxppo.Mean:
    """PPO's clip, a mean over all steps.

    rlax 0.1.9, policy_gradients.py, which takes the ratio (rank 1, without a guard) and
    whose `jnp.fmin` hides a NaN on one side of the minimum.
    """
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask, max_abs=math.inf)
    loss = jaxppo.clipped_surrogate(x, advantages, clip_eps=clip_eps)
    return jaxppo.token_mean(loss, mask)


def truncated_generalized_advantage_estimation(
    rewards: jax.Array,
    discounts: jax.Array,
    lambda_: jax.Array | ScalarLike,
    values: jax.Array,
) -> jax.Array:
    """GAE of a piece of a trajectory; values are one longer than rewards.

    rlax 0.1.9, multistep.py, constant as by its default. "Truncated" is the horizon:
    discounts are gamma (1 - terminated), and a time limit inside the piece needs
    `r += gamma v(final)`, or `jaxppo.gae` with `next_values`.
    """
    out = jaxppo.gae(
        rewards,
        values[..., :-1],
        discounts,
        lambda_=lambda_,
        bootstrap_value=values[..., -1],
    )
    return jax.lax.stop_gradient(out.advantages)


def vtrace(
    values: jax.Array,
    next_values: jax.Array,
    rewards: jax.Array,
    discounts: jax.Array,
    log_ratio: jax.Array,
    *,
    lambda_: jax.Array | ScalarLike = 1.0,
    clip_rho_threshold: ScalarLike = 1.0,
) -> jax.Array:
    """V-trace's errors vs - v, differentiated by v: half their square is a critic loss.

    rlax 0.1.9, vtrace.py, with the log of its `rho_tm1`. Its traces are cut at 1
    whatever `clip_rho_threshold`.
    """
    out = jaxppo.vtrace(
        log_ratio,
        rewards,
        values,
        discounts,
        lambda_=lambda_,
        rho_clip=clip_rho_threshold,
        next_values=next_values,
    )
    return jax.lax.stop_gradient(out.returns) - values


def vtrace_td_error_and_advantage(
    values: jax.Array,
    next_values: jax.Array,
    rewards: jax.Array,
    discounts: jax.Array,
    log_ratio: jax.Array,
    *,
    lambda_: jax.Array | ScalarLike = 1.0,
    clip_rho_threshold: ScalarLike = 1.0,
    clip_pg_rho_threshold: ScalarLike = 1.0,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """V-trace's errors, IMPALA's advantages and its estimates of q.

    rlax 0.1.9, vtrace.py; the log of its `rho_tm1`. q_t = r_t + discount_t ((1 -
    lambda) v_{t+1} + lambda vs_{t+1}), bootstrapped with v after the last step; the
    advantage is min(rho, clip_pg_rho_threshold) (q - v).
    """
    errors = vtrace(
        values,
        next_values,
        rewards,
        discounts,
        log_ratio,
        lambda_=lambda_,
        clip_rho_threshold=clip_rho_threshold,
    )
    targets = errors + values
    # What comes after the last step; before it, the next step of the array.
    end = next_values[..., -1:]
    later = jnp.concatenate([targets[..., 1:], end], -1)
    following = jnp.concatenate([values[..., 1:], end], -1)
    q = rewards + discounts * (lambda_ * later + (1 - lambda_) * following)
    rho = jaxppo.truncated_weights(log_ratio, cap=clip_pg_rho_threshold)
    advantages = rho * (q - values)
    return errors, jax.lax.stop_gradient(advantages), jax.lax.stop_gradient(q)
