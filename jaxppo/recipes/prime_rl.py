"""prime-rl at commit 559b4477: `src/prime_rl/trainer/rl/loss.py`, `orchestrator/algo`.

Every loss is against the sampler's own log-probs: there is no third policy. Log-ratios
have no guard. prime-rl multiplies by its masks, so that the infinite ratio of a token
it means to drop is a NaN in the loss (its issue 2084): here such a token is left out
before the exponential. Sums are divided by the number of loss tokens of the whole step.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import ScalarLike

import jaxppo


def default(
    log_probs: jax.Array,
    rollout_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    low: ScalarLike = 0.2,
    high: ScalarLike = 0.2,
    advantage_coef: ScalarLike = 1.0,
    kl_coef: ScalarLike = 1e-3,
    aggregate: jaxppo.Aggregator = jaxppo.token_mean,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """DPPO with total variation, and Kimi-K2.5's square: -keep r A + coef (log r)^2.

    prime-rl 559b4477, loss.py `default_loss_fn`. A token is dropped where its
    probability has moved more than 0.2 the way its advantage pushes it (down, where the
    advantage is 0). The square has no half, and is taken of dropped tokens, too.
    """
    x = jaxppo.log_ratio(log_probs, rollout_log_probs, mask, max_abs=math.inf)
    moved = jaxppo.binary_tv(log_probs, rollout_log_probs, mask)
    keep = jaxppo.trust_region_mask(x, advantages, moved, low=low, high=high)
    loss = _kept(x, advantages, keep) * advantage_coef + x**2 * kl_coef
    good = jnp.broadcast_to(advantages > 0, x.shape)
    bad = jnp.broadcast_to(advantages < 0, x.shape)
    metrics = _drops(x, keep, mask) | {
        "is_masked_low": _share(~keep & bad, mask),
        "is_masked_high": _share(~keep & good, mask),
        "masked_advantage_positive": _share(good, ~keep & mask.astype(bool)),
        "masked_advantage_negative": _share(bad, ~keep & mask.astype(bool)),
    }
    return aggregate(loss, mask), jax.lax.stop_gradient(metrics)


def ipo(
    log_probs: jax.Array,
    rollout_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    threshold: ScalarLike = 0.1,
    advantage_coef: ScalarLike = 1.0,
    kl_coef: ScalarLike = 1e-3,
    aggregate: jaxppo.Aggregator = jaxppo.token_mean,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """`default` with a trust region that does not ask which way the advantage pushes.

    prime-rl 559b4477, loss.py `ipo_loss_fn`. A token whose probability has moved by
    more than the threshold has no policy gradient, not even one that would bring it
    back; the square of the log-ratio does that alone.
    """
    x = jaxppo.log_ratio(log_probs, rollout_log_probs, mask, max_abs=math.inf)
    keep = ~(jaxppo.binary_tv(log_probs, rollout_log_probs, mask) > threshold)
    loss = _kept(x, advantages, keep) * advantage_coef + x**2 * kl_coef
    return aggregate(loss, mask), jax.lax.stop_gradient(_drops(x, keep, mask))


def ref_kl(
    log_probs: jax.Array,
    rollout_log_probs: jax.Array,
    ref_log_probs: jax.Array,
    mask: jax.Array,
    *,
    low: ScalarLike = 0.2,
    kl_coef: ScalarLike = 1e-3,
    aggregate: jaxppo.Aggregator = jaxppo.token_mean,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """On-policy distillation: the advantage is log ref - log pi, for each token.

    prime-rl 559b4477, loss.py `ref_kl_loss_fn`. Tokens are dropped where the
    probability has *fallen* by more than 0.2, whatever the sign of their advantage;
    both numbers are constants there.
    """
    x = jaxppo.log_ratio(log_probs, rollout_log_probs, mask, max_abs=math.inf)
    to_ref = -jaxppo.log_ratio(log_probs, ref_log_probs, mask, max_abs=math.inf)
    moved = jaxppo.binary_tv(log_probs, rollout_log_probs, mask)
    keep = ~((moved > low) & (x < 0))
    loss = _kept(x, to_ref, keep) + x**2 * kl_coef
    metrics = {f"ref_kl/{name}": m for name, m in _drops(x, keep, mask).items()}
    metrics["ref_kl"] = jaxppo.token_mean(to_ref, mask)
    return aggregate(loss, mask), jax.lax.stop_gradient(metrics)


def ce(
    log_probs: jax.Array,
    mask: jax.Array,
    *,
    aggregate: jaxppo.Aggregator = jaxppo.token_mean,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """Cross-entropy, for demonstrations and observations.

    prime-rl 559b4477, loss.py `ce_loss_fn`. Add its value to that of a loss above: each
    has the number of its own tokens as denominator, so neither dilutes the other.
    """
    loss = -log_probs
    metrics: dict[str, jaxppo.Metric] = {"nll": jaxppo.token_mean(loss, mask)}
    return aggregate(loss, mask), jax.lax.stop_gradient(metrics)


def grpo_advantages(rewards: jax.Array, *, group_size: int) -> jax.Array:
    """r - mean, without the standard deviation.

    prime-rl 559b4477, algo/grpo.py, and algo/hierarchical_grpo.py, whose groups are
    the `group_ids` of `jaxppo.group_advantages`: one for each role and problem.
    """
    return jaxppo.group_advantages(rewards, group_size=group_size, scale_by_std=False)


def length_penalised_advantages(
    rewards: jax.Array,
    output_tokens: jax.Array,
    input_tokens: jax.Array,
    turns: jax.Array,
    *,
    group_size: int,
    output_coef: ScalarLike = 0.25,
    input_coef: ScalarLike = 0.1,
    turns_coef: ScalarLike = 0.1,
) -> jax.Array:
    """GRPO's of r - mean(r) (sum of coef length / longest of the group).

    prime-rl 559b4477, algo/grpo.py with `length_penalty`: the lengths are numbers of
    output tokens, of all other tokens and of turns. The better the group, the more a
    long answer costs.
    """
    groups = rewards.reshape(-1, group_size)

    def cost(coef: ScalarLike, lengths: jax.Array) -> jax.Array:
        size = lengths.reshape(groups.shape).astype(groups.dtype)
        return size * coef / jnp.maximum(jnp.max(size, -1, keepdims=True), 1)

    share = cost(output_coef, output_tokens) + cost(input_coef, input_tokens)
    share = share + cost(turns_coef, turns)
    shaped = groups - jnp.mean(groups, -1, keepdims=True) * share
    return grpo_advantages(shaped.reshape(rewards.shape), group_size=group_size)


def max_rl_advantages(rewards: jax.Array, *, group_size: int) -> jax.Array:
    """(r - mean) / mean: the rarer the success, the more it weighs.

    prime-rl 559b4477, algo/max_rl.py. For rewards of at least 0: a group whose mean is
    not positive gets 0.
    """
    centred = grpo_advantages(rewards, group_size=group_size)
    mean = rewards.astype(centred.dtype) - centred
    return jnp.where(mean > 0, centred / jnp.where(mean > 0, mean, 1), 0)


def rae_advantages(
    rewards: jax.Array,
    agents: jax.Array,
    baselines: jax.Array,
    *,
    decay: ScalarLike = 0.95,
) -> tuple[jax.Array, jax.Array]:
    """r less a running mean of the same agent's rewards; returns those means, too.

    prime-rl 559b4477, algo/rae.py (SPIRAL, arXiv:2506.24119), for self-play, where the
    mean over a group is 0 whatever is played. `agents` are integers into `baselines`,
    which begin at 0; one reward after the other, in order: the result depends on it.
    """

    def step(means: jax.Array, sample: tuple) -> tuple[jax.Array, jax.Array]:
        agent, reward = sample
        mean = means[agent]
        return means.at[agent].set(decay * mean + (1 - decay) * reward), reward - mean

    means, out = jax.lax.scan(step, baselines, (agents, rewards))
    return out, means


def _kept(x: jax.Array, advantages: jax.Array, keep: jax.Array) -> jax.Array:
    """-r A of the kept tokens; x of the others never meets the exponential."""
    loss = jaxppo.unclipped_surrogate(jnp.where(keep, x, 0), advantages)
    return jnp.where(keep, loss, 0)


def _share(which: jax.Array, mask: jax.Array) -> jaxppo.Mean:
    return jaxppo.token_mean(which.astype(jnp.float32), mask)


def _drops(x: jax.Array, keep: jax.Array, mask: jax.Array) -> dict[str, jaxppo.Metric]:
    mismatch, counts = jaxppo.approx_kl_k3(x), mask.astype(bool)
    return {
        "masked_mismatch_kl": jaxppo.token_mean(mismatch, counts & ~keep),
        "unmasked_mismatch_kl": jaxppo.token_mean(mismatch, counts & keep),
        "is_masked": _share(~keep, mask),
    }
