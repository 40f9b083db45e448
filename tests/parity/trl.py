"""TRL 1.16.0: its names in the reference values, and the recipes that give them."""

import jax
import jax.numpy as jnp

import jaxppo
from jaxppo.recipes import trl

row_mean = jaxppo.all_rows(jaxppo.sequence_mean)


def whole(policy, b, *, kl=None, kl_coef=0.04, entropy_coef=0.0, aggregate=row_mean):
    """TRL's whole loss: the policy's, a KL penalty and an entropy bonus."""
    loss, metrics = policy
    if kl is not None:
        penalty, more = trl.kl_penalty(kl, b.mask, kl_coef=kl_coef, aggregate=aggregate)
        loss = jaxppo.Mean(loss.value + penalty.value, jnp.ones_like(loss.count))
        metrics = {**metrics, **more}
    bonus, more = trl.entropy_bonus(b.entropy, b.mask, entropy_coef=entropy_coef)
    total = jaxppo.Mean(loss.value + bonus.value, jnp.ones_like(loss.count))
    return total, {**metrics, **more, "policy_loss": jax.lax.stop_gradient(loss)}


def of(recipe, **options):
    def loss(logp, b):
        return whole(recipe(logp, b.old, b.adv, b.mask, **options), b)

    return loss


def dr_grpo(logp, b):
    policy = trl.dr_grpo(logp, b.old, b.adv, b.mask, max_length=b.time)
    return whole(policy, b)


def luspo_of_sequences(logp, b):
    row_sum = jaxppo.all_rows(jaxppo.sequence_sum)
    return whole(trl.gspo(logp, b.old, b.adv, b.mask, aggregate=row_sum), b)


def bias_corrected_kl(logp, b):
    kl = trl.bias_corrected_kl(logp, b.old, b.ref, b.mask)
    return whole(trl.grpo(logp, b.old, b.adv, b.mask), b, kl=kl)


def plain_kl(logp, b):
    kl = trl.kl(logp, b.ref, b.mask)
    return whole(trl.grpo(logp, b.old, b.adv, b.mask), b, kl=kl)


def off_policy_masked(logp, b):
    keep = trl.off_policy_mask(logp, b.rollout, b.adv, b.mask, threshold=0.0)
    weights = jnp.where(keep, 1.0, 0.0)
    return whole(trl.grpo(logp, b.old, b.adv, b.mask, weights=weights), b)


def top_entropy(logp, b):
    keep = jaxppo.top_entropy_mask(b.entropy, b.mask, fraction=0.5)
    weights = jnp.where(keep, 1.0, 0.0)
    return whole(trl.grpo(logp, b.old, b.adv, b.mask, weights=weights), b)


def entropy_bonus(logp, b):
    policy = trl.grpo(logp, b.old, b.adv, b.mask)
    return whole(policy, b, entropy_coef=0.01)


def token_truncated(logp, b):
    weights, metrics = trl.token_truncate(b.old, b.rollout, b.mask)
    loss, more = whole(trl.grpo(logp, b.old, b.adv, b.mask, weights=weights), b)
    return loss, {**metrics, **more}


def kept_rows(b):
    keep = trl.off_policy_mask(b.logp, b.rollout, b.adv, b.mask, threshold=0.0)
    return jnp.where(jnp.all(keep | ~b.mask, -1), 1.0, 0.0)


def vespo_phi(b):
    x = jaxppo.log_ratio(b.logp, b.old, b.mask)
    phi = jaxppo.vespo_weights(x, b.adv, b.mask)[:, 0]
    return jnp.where(jnp.any(b.mask, -1), phi, 1)  # TRL's rows without a token


LOSSES = {
    "trl/grpo": of(trl.grpo),
    "trl/dapo": of(trl.dapo),
    "trl/bnpo": of(trl.bnpo),
    "trl/dr_grpo": dr_grpo,
    "trl/luspo": of(trl.luspo),
    "trl/sapo": of(trl.sapo),
    "trl/vespo": of(trl.vespo),
    "trl/cispo(eps_high=5)": of(trl.cispo, clip_eps_high=5.0),
    "trl/cispo(eps_high=1.2)": of(trl.cispo, clip_eps_high=1.2),
    "trl/gspo(seq,grpo)": of(trl.gspo),
    "trl/luspo(seq)": luspo_of_sequences,
    "trl/grpo+delta1.3": of(trl.grpo, delta=1.3),
    "trl/dapo+delta3 (== dual clip c=3)": of(trl.dapo, delta=3.0),
    "trl/grpo+beta.04(bias-corrected kl)": bias_corrected_kl,
    "trl/grpo+beta.04(plain k3)": plain_kl,
    "trl/grpo+OPSM(0.)": off_policy_masked,
    "trl/grpo+top_entropy.5": top_entropy,
    "trl/grpo+entropy_coef.01": entropy_bonus,
    "trl/grpo+token TIS": token_truncated,
    "trl/rloo(seq ratio)": of(trl.rloo),
    "trl/gmpo(eps .4)": of(trl.gmpo),
}

VALUES = {"trl/off_policy_mask(0.)": kept_rows, "trl/vespo phi": vespo_phi}

# No value was recorded of these: who tests them.
UNREFERENCED = dict.fromkeys(
    [
        "token_mask",
        "sequence_truncate",
        "sequence_mask",
        "summed_rewards",
        "group_advantages",
        "batch_advantages",
        "unscaled_advantages",
        "gdpo_advantages",
        "penalised_rewards",
        "rloo_advantages",
        "normalised_rloo_advantages",
    ],
    "test_recipe_oracles.py::test_a_value_is_its_formula",
)
