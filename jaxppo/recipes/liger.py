"""Liger-Kernel 0.8.5: `chunked_loss/grpo_loss.py`, `LigerFusedLinearGRPOLoss`.

TRL's losses (`recipes.trl`) with one fraction clipped instead of five metrics, and a KL
term of coefficient 0.04 unless it is told otherwise: `{"policy": dapo(...)[0], "kl":
kl_penalty(...)[0]}`. Liger bounds no log-ratio (but VESPO's), divides losses by
sequence by all rows, and multiplies by the mask, so that a NaN under it is a NaN in
the loss: not here. `weights` (`vllm_is_ratio`) multiply a policy loss per token or
sequence, and leave its denominator and the KL alone. Sequence-level CISPO, SAPO and
VESPO raise there, and do not exist here.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import ScalarLike

import jaxppo

_row_mean = jaxppo.all_rows(jaxppo.sequence_mean)


def grpo(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    weights: jax.Array | float = 1.0,
    clip_eps: ScalarLike = 0.2,
    clip_eps_high: ScalarLike = 0.2,
    delta: ScalarLike = math.inf,
    aggregate: jaxppo.Aggregator = _row_mean,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """PPO's clip, the mean over all rows of their means.

    Liger-Kernel 0.8.5, grpo_loss.py, `loss_type="grpo"`. `delta` > 1 caps the ratio
    before the minimum is taken (INTELLECT-2): above 1 + high it is a dual clip. The
    fraction clipped does not know of it.
    """
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask, max_abs=math.inf)
    per_token, clipped = _two_sided(x, advantages, clip_eps, clip_eps_high, delta)
    return aggregate(per_token * weights, mask), _fraction(clipped, mask)


def bnpo(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    weights: jax.Array | float = 1.0,
    clip_eps: ScalarLike = 0.2,
    clip_eps_high: ScalarLike = 0.2,
    delta: ScalarLike = math.inf,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """`grpo`, the mean over the tokens of one process's microbatch.

    Liger-Kernel 0.8.5, grpo_loss.py, `loss_type="bnpo"`. Fault: means of microbatches
    and processes are averaged. As `Mean`s merge, this one is `dapo`.
    """
    return grpo(
        log_probs,
        old_log_probs,
        advantages,
        mask,
        weights=weights,
        clip_eps=clip_eps,
        clip_eps_high=clip_eps_high,
        delta=delta,
        aggregate=jaxppo.token_mean,
    )


def dapo(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    weights: jax.Array | float = 1.0,
    clip_eps: ScalarLike = 0.2,
    clip_eps_high: ScalarLike = 0.2,
    delta: ScalarLike = math.inf,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """`grpo`, the mean over the tokens of all processes.

    Liger-Kernel 0.8.5, grpo_loss.py, `loss_type="dapo"`, its default. Over
    microbatches, too, only if it is given `num_items_in_batch`; `Mean`s need not be.
    """
    return grpo(
        log_probs,
        old_log_probs,
        advantages,
        mask,
        weights=weights,
        clip_eps=clip_eps,
        clip_eps_high=clip_eps_high,
        delta=delta,
        aggregate=jaxppo.token_mean,
    )


def dr_grpo(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    max_length: int,
    weights: jax.Array | float = 1.0,
    clip_eps: ScalarLike = 0.2,
    clip_eps_high: ScalarLike = 0.2,
    delta: ScalarLike = math.inf,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """`grpo`, the sum over tokens divided by rows times `max_length`.

    Liger-Kernel 0.8.5, grpo_loss.py, `loss_type="dr_grpo"`; `max_completion_length`
    there, without a default.
    """
    row_sum = functools.partial(jaxppo.sequence_sum, scale=1 / max_length)
    return grpo(
        log_probs,
        old_log_probs,
        advantages,
        mask,
        weights=weights,
        clip_eps=clip_eps,
        clip_eps_high=clip_eps_high,
        delta=delta,
        aggregate=jaxppo.all_rows(row_sum),
    )


def luspo(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    weights: jax.Array | float = 1.0,
    clip_eps: ScalarLike = 0.2,
    clip_eps_high: ScalarLike = 0.2,
    delta: ScalarLike = math.inf,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """The mean over rows *and columns* of the loss times the row's length.

    Liger-Kernel 0.8.5, grpo_loss.py, `loss_type="luspo"` with the ratios of tokens, its
    default. Fault: the mask is forgotten, in the KL term, too: padding is learned from,
    a NaN in it is a NaN here, and the width of the batch changes the loss. Use the
    paper's instead, which is sound: `gspo(...,
    aggregate=jaxppo.all_rows(jaxppo.sequence_sum))`; or `trl.luspo`.
    """
    x = jaxppo.log_ratio(log_probs, old_log_probs, max_abs=math.inf)
    per_token, clipped = _two_sided(x, advantages, clip_eps, clip_eps_high, delta)
    length = jnp.sum(mask.astype(bool), -1, keepdims=True, dtype=x.dtype)
    return jaxppo.token_mean(per_token * weights * length), _fraction(clipped, mask)


def gspo(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    weights: jax.Array | float = 1.0,
    clip_eps: ScalarLike = 0.2,
    clip_eps_high: ScalarLike = 0.2,
    delta: ScalarLike = math.inf,
    aggregate: jaxppo.Aggregator = _row_mean,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """The clip of a sequence's mean log-ratio.

    Liger-Kernel 0.8.5, grpo_loss.py, `importance_sampling_level="sequence"` with
    `loss_type="grpo"`; the fraction clipped is of tokens (of rows in TRL). The bounds
    are PPO's by default: GSPO's paper has 3e-4 and 4e-4.
    """
    x = jaxppo.sequence_log_ratio(log_probs, old_log_probs, mask, max_abs=math.inf)
    per_token, clipped = _two_sided(x, advantages, clip_eps, clip_eps_high, delta)
    return aggregate(per_token * weights, mask), _fraction(clipped, mask)


def cispo(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    weights: jax.Array | float = 1.0,
    clip_eps_high: ScalarLike = 0.2,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """-sg(min(r, high)) A log pi, the mean over tokens.

    Liger-Kernel 0.8.5, grpo_loss.py, `loss_type="cispo"`. `clip_eps_high` is the
    largest weight itself, not a distance from 1. Fault: the default of 0.2 is PPO's,
    and all but the rarest ratios weigh 0.2. Use 5.0 instead, as its documentation does.
    """
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask, max_abs=math.inf)
    per_token = jaxppo.cispo(log_probs, x, advantages, mask, high=clip_eps_high)
    clipped = ((jnp.exp(x) > clip_eps_high) & (advantages > 0)).astype(x.dtype)
    return jaxppo.token_mean(per_token * weights, mask), _fraction(clipped, mask)


def sapo(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    weights: jax.Array | float = 1.0,
    temperature: ScalarLike = 1.0,
    temperature_negative: ScalarLike = 1.05,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """A sigmoid gate in place of the clip, the mean over all rows of their means.

    Liger-Kernel 0.8.5, grpo_loss.py, `loss_type="sapo"`; nothing counts as clipped.
    """
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask, max_abs=math.inf)
    per_token = jaxppo.soft_gated_surrogate(
        x,
        advantages,
        temperature=temperature,
        temperature_negative=temperature_negative,
    )
    return _row_mean(per_token * weights, mask), _fraction(jnp.zeros_like(x), mask)


def vespo(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    weights: jax.Array | float = 1.0,
    k: ScalarLike = 2.0,
    lambda_: ScalarLike = 3.0,
    k_negative: ScalarLike = 3.0,
    lambda_negative: ScalarLike = 2.0,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """-phi A log pi with phi = w^k exp(lambda (1 - w)), the mean over tokens.

    Liger-Kernel 0.8.5, grpo_loss.py, `loss_type="vespo"` and `get_gamma_weights`. w is
    the whole sequence's ratio: tokens within 20 nats, their sum in [log 1e-8, 20].
    `weights` go into w, per token, each in [1e-8, e^20]; nothing counts as clipped.
    """
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask)
    phi = jaxppo.vespo_weights(
        x + jnp.clip(jnp.log(weights), math.log(1e-8), 20.0),
        advantages,
        mask,
        k=k,
        lambda_=jnp.maximum(lambda_, 1e-4),
        k_negative=k_negative,
        lambda_negative=jnp.maximum(lambda_negative, 1e-4),
    )
    per_token = phi * jaxppo.policy_gradient(log_probs, advantages, mask)
    return jaxppo.token_mean(per_token, mask), _fraction(jnp.zeros_like(x), mask)


def kl(log_probs: jax.Array, ref_log_probs: jax.Array, mask: jax.Array) -> jax.Array:
    """k3 per token.

    Liger-Kernel 0.8.5, grpo_loss.py, `k3_loss_fn`. Fault: not bounded, exp(log pi_ref -
    log pi) overflows; its gradient is not the divergence's. Use
    `jaxppo.unbiased_gradient_kl` instead.
    """
    x = jaxppo.log_ratio(log_probs, ref_log_probs, mask, max_abs=math.inf)
    return jaxppo.kl_k3(x)


def bias_corrected_kl(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    ref_log_probs: jax.Array,
    mask: jax.Array,
    *,
    policy_log_ratio: Callable[..., jax.Array] = jaxppo.log_ratio,
) -> jax.Array:
    """r k3 per token, differentiated through both.

    Liger-Kernel 0.8.5, grpo_loss.py, `use_bias_correction_kl=True`, off by default.
    Fault: with sequence-level ratios it takes them here, too,
    `jaxppo.sequence_log_ratio`, which is biased. Keep the ratio of tokens instead.
    """
    x = jaxppo.log_ratio(log_probs, ref_log_probs, mask, max_abs=math.inf)
    policy = policy_log_ratio(log_probs, old_log_probs, mask, max_abs=math.inf)
    return jaxppo.importance_weighted_kl(x, policy, estimator=jaxppo.kl_k3)


def kl_penalty(
    kl: jax.Array,
    mask: jax.Array,
    *,
    kl_coef: ScalarLike = 0.04,
    aggregate: jaxppo.Aggregator = jaxppo.token_mean,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """`beta` times a KL, aggregated as the policy loss is.

    Liger-Kernel 0.8.5, grpo_loss.py: by rows with `grpo`, `gspo` and `sapo`
    (`jaxppo.all_rows(jaxppo.sequence_mean)`). The metric is the mean over tokens.
    """
    metrics: dict[str, jaxppo.Metric] = {"kl": jaxppo.token_mean(kl, mask)}
    return kl_coef * aggregate(kl, mask), jax.lax.stop_gradient(metrics)


def _two_sided(
    log_ratio: jax.Array,
    advantages: jax.Array,
    eps: ScalarLike,
    high: ScalarLike,
    delta: ScalarLike,
) -> tuple[jax.Array, jax.Array]:
    """-min(min(r, delta) A, clip(r, 1 - eps, 1 + high) A), and 1 where r is clipped."""
    per_token = jaxppo.clipped_surrogate(
        log_ratio,
        advantages,
        clip_eps=eps,
        clip_eps_high=jnp.minimum(high, delta - 1),
        dual_clip=jnp.maximum(delta, 1 + high),
    )
    lower = jaxppo.clip_fraction_lower(log_ratio, advantages, clip_eps=eps)
    upper = jaxppo.clip_fraction_upper(log_ratio, advantages, clip_eps=high)
    return per_token, lower + upper


def _fraction(clipped: jax.Array, mask: jax.Array) -> dict[str, jaxppo.Metric]:
    metrics: dict[str, jaxppo.Metric] = {
        "clip_fraction": jaxppo.token_mean(clipped, mask)
    }
    return jax.lax.stop_gradient(metrics)
