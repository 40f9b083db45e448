"""The algorithms by name: advantages from rewards, and a loss of jaxppo's recipes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import jaxppo
from jaxppo import recipes

Batch = dict[str, jax.Array]
Loss = tuple[Any, dict[str, jaxppo.Metric]]


class Algorithm(NamedTuple):
    """Two functions of a batch whose arrays are `(prompts, samples, new)`.

    Attributes:
        advantages: `advantages(batch, options)` adds them, and what else the loss
            needs; `rewards` are (prompts, samples), `scored` says which exist.
        loss: `loss(head, values, batch, options)`.
        critic: the model needs a value head.
    """

    advantages: Callable[[Batch, Any], Batch]
    loss: Callable[..., Loss]
    critic: bool = False


def of_group(batch: Batch, scale_by_std: bool = True) -> Batch:
    """Rewards relative to those of the prompt's other samples."""
    rewards = batch["rewards"]
    advantages = jaxppo.group_advantages(
        rewards,
        batch["scored"],
        group_size=rewards.shape[-1],
        scale_by_std=scale_by_std,
    )
    return batch | {"advantages": advantages[..., None]}


def varied(batch: Batch) -> Batch:
    """DAPO's dynamic sampling: groups of equal rewards, which teach nothing, go."""
    rewards = batch["rewards"]
    kept = jaxppo.varied_groups(rewards, batch["scored"], group_size=rewards.shape[-1])
    return batch | {"mask": batch["mask"] & kept[..., None]}


def from_critic(batch: Batch, options: Any) -> Batch:
    """GAE over tokens: the reward at the last, less the KL penalty at each."""
    mask = batch["mask"]
    last = mask & (jnp.cumsum(mask, -1) == jnp.sum(mask, -1, keepdims=True))
    rewards = jnp.where(last, batch["rewards"][..., None], 0)
    if "ref_log_probs" in batch:
        kl = jaxppo.log_ratio(batch["old_log_probs"], batch["ref_log_probs"], mask)
        rewards = rewards - options.kl_coef * kl
    estimates = jaxppo.gae(
        rewards, batch["old_values"], 1.0, lambda_=options.gae_lambda, mask=mask
    )
    return batch | {
        "advantages": jaxppo.whiten(estimates.advantages, mask),
        "returns": estimates.returns,
    }


def _policy(recipe: Callable[..., Loss]) -> Callable[..., Loss]:
    """A recipe, and the penalty for leaving the reference, if there is one.

    The penalty is GRPO's own, k3, whose gradient is that of the KL the other way round.
    """

    def loss(head: Any, values: Any, b: Batch, options: Any) -> Loss:
        terms = head.log_probs, b["old_log_probs"], b["advantages"], b["mask"]
        policy, metrics = recipe(terms, options)
        if "ref_log_probs" not in b:
            return policy, metrics
        x = jaxppo.log_ratio(head.log_probs, b["ref_log_probs"], b["mask"])
        kl = jaxppo.token_mean(options.kl_coef * jaxppo.kl_k3(x), b["mask"])
        return {"policy": policy, "kl_penalty": kl}, metrics

    return loss


def _ppo(head: Any, values: jax.Array, b: Batch, options: Any) -> Loss:
    return jaxppo.ppo_loss(
        head.log_probs,
        b["old_log_probs"],
        b["advantages"],
        b["mask"],
        values=values,
        old_values=b["old_values"],
        returns=b["returns"],
        entropy=head.entropy,
        clip_eps=options.clip_eps,
        value_coef=options.value_coef,
        value_clip_eps=options.value_clip_eps,
        entropy_coef=options.entropy_coef,
    )


ALGORITHMS = {
    "grpo": Algorithm(
        lambda b, o: of_group(b),
        _policy(
            lambda terms, o: recipes.ppo(
                *terms, clip_eps=o.clip_eps, aggregate=jaxppo.sequence_mean
            )
        ),
    ),
    "dr_grpo": Algorithm(
        lambda b, o: of_group(b, scale_by_std=False),
        _policy(
            lambda terms, o: recipes.dr_grpo(
                *terms, max_length=terms[0].shape[-1], clip_eps=o.clip_eps
            )
        ),
    ),
    "dapo": Algorithm(
        lambda b, o: varied(of_group(b)),
        _policy(lambda terms, o: recipes.dapo(*terms, clip_eps=o.clip_eps)),
    ),
    "gspo": Algorithm(
        lambda b, o: of_group(b), _policy(lambda terms, o: recipes.gspo(*terms))
    ),
    "cispo": Algorithm(
        lambda b, o: of_group(b), _policy(lambda terms, o: recipes.cispo(*terms))
    ),
    "ppo": Algorithm(from_critic, _ppo, critic=True),
}
