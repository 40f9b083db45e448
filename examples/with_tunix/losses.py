"""jaxppo's losses under names of their own in Tunix: what to paste in your script.

    register("jaxppo/gspo", jaxppo.recipes.gspo)
    GRPOConfig(policy_loss_fn="jaxppo/gspo", ...)

Where the two differ (google-tunix 0.1.7): Tunix averages the losses of microbatches
(`optax.MultiSteps`), and so only a mean over sequences, not one over tokens, is the
same for every `train_micro_batch_size`. It multiplies by the mask, so that a NaN under
it is a NaN in the loss; here it is not. A loss registered here has the hyper-parameters
that it was registered with: of Tunix's config it reads `beta` and `temperature` alone.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from tunix.rl import common, function_registry
from tunix.rl.ppo.ppo_learner import PPOConfig

import jaxppo

PolicyLoss = Callable[..., tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]]
Logged = tuple[jax.Array, dict[str, jax.Array]]


def register(
    name: str,
    loss: PolicyLoss,
    *,
    kl: Callable[[jax.Array], jax.Array] = jaxppo.unbiased_gradient_kl,
    aggregate: jaxppo.Aggregator = jaxppo.sequence_mean,
) -> None:
    """Let `policy_loss_fn=name`, in GRPOConfig or PPOConfig, be this loss.

    `loss(log_probs, old_log_probs, advantages, mask)` returns a `Mean` and metrics, as
    `jaxppo.ppo_loss` and `jaxppo.recipes` do. `kl` and `aggregate` are those of GRPO's
    penalty, whose weight is `beta`; Tunix's own has `jaxppo.kl_k1`, whose gradient is 0
    in expectation. PPO's penalty is in the rewards.
    """

    @function_registry.register_policy_loss_fn(name)
    def policy_loss(
        model: nnx.Module,
        train_example: Any,
        algo_config: Any,
        pad_id: int,
        eos_id: int,
        **_: Any,
    ) -> Logged:
        b, mask = train_example, train_example.completion_mask
        refuse(b, "segment_ids", "a row would be several sequences")
        refuse(b, "sampler_is_weights", "pass them to the loss yourself")
        graph, state = nnx.split(model)
        log_probs = common.compute_per_token_logps(
            graph,
            state,
            prompt_tokens=b.prompt_ids,
            completion_tokens=b.completion_ids,
            pad_id=pad_id,
            eos_id=eos_id,
            stop_gradient=False,
            temperature=getattr(algo_config, "temperature", 1.0),
        )
        old = b.old_per_token_logps  # None where a batch is used once: the ratio is 1
        old = jax.lax.stop_gradient(log_probs) if old is None else old
        advantages = b.advantages if b.advantages.ndim == 2 else b.advantages[:, None]
        mean, metrics = loss(log_probs, old, advantages, mask)
        value, logged = mean.value, jaxppo.finalize(metrics)
        if b.ref_per_token_logps is not None and not isinstance(algo_config, PPOConfig):
            x = jaxppo.log_ratio(log_probs, b.ref_per_token_logps, mask)
            value += algo_config.beta * aggregate(kl(x), mask).value
            logged["kl"] = jaxppo.token_mean(jaxppo.kl_k3(x), mask).value
        return value, in_tunix_names(logged)


def register_value_loss(name: str) -> None:
    """Let `value_loss_fn=name` in PPOConfig be jaxppo's clipped value loss."""

    @function_registry.register_value_loss_fn(name)
    def value_loss(
        model: nnx.Module,
        train_example: Any,
        clip_range_value: float,
        pad_id: int,
        eos_id: int,
    ) -> Logged:
        b = train_example
        refuse(b, "segment_ids", "a row would be several sequences")
        values = common.compute_score(
            model, b.prompt_ids, b.completion_ids, pad_id, eos_id, stop_gradient=False
        )
        mean, metrics = jaxppo.recipes.tunix.value_loss(
            values[:, -b.completion_ids.shape[1] - 1 : -1],  # before each token
            b.old_values,
            b.returns,
            b.completion_mask,
            clip_eps=clip_range_value,
        )
        return mean.value, jaxppo.finalize(metrics)


def refuse(train_example: Any, name: str, reason: str) -> None:
    """What the losses above would silently leave out."""
    if getattr(train_example, name, None) is not None:
        raise NotImplementedError(f"Tunix passes `{name}`, unused here: {reason}.")


def in_tunix_names(logged: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """With what Tunix's learners always log, at 0 where the loss has no such thing."""
    zero = jnp.zeros(())
    lower = logged.get("clip_fraction_lower", zero)
    upper = logged.get("clip_fraction_upper", zero)
    return {"kl": zero, "pg_clipfrac": lower + upper, **logged}
