"""NeMo-RL: its names in the reference values, and the recipes that give them."""

import jax
import jax.numpy as jnp

import jaxppo
from jaxppo.recipes import nemo

NONE = {"kl_penalty": 0.0, "positive_nll_loss": 0.0}  # what is off is logged as 0


def of(recipe, weights=nemo.importance_weights, *, corrected=False, **options):
    """A policy loss with all of NeMo's metrics; weights are logged in any case."""

    def loss(logp, b):
        w, logged = weights(b.old, b.rollout, b.mask)
        more = dict(weights=w) if corrected else {}
        total, metrics = recipe(logp, b.old, b.adv, b.mask, **options, **more)
        apart = nemo.diagnostics(logp, b.old, b.rollout, b.mask)
        return total, NONE | metrics | apart | logged

    return loss


def reinforce(logp, b):
    total, metrics = nemo.reinforce(logp, b.adv, b.mask)
    _, logged = nemo.importance_weights(b.old, b.rollout, b.mask)
    apart = nemo.diagnostics(logp, b.old, b.rollout, b.mask)
    return total, NONE | metrics | apart | logged


def on_policy(logp, b):
    now = jax.lax.stop_gradient(logp)
    total, metrics = nemo.on_policy(logp, b.adv, b.mask)
    _, logged = nemo.importance_weights(now, b.rollout, b.mask)
    apart = nemo.diagnostics(logp, now, b.rollout, b.mask)
    return total, NONE | metrics | apart | logged


def with_kl(logp, b):
    policy, metrics = of(nemo.ppo)(logp, b)
    kl = nemo.score_weighted_kl(logp, b.ref, b.mask)
    penalty, logged = nemo.kl_penalty(kl, b.mask, kl_coef=0.01)
    total = jaxppo.Mean(policy.value + penalty.value, jnp.ones_like(policy.count))
    return total, metrics | logged | {"loss": jax.lax.stop_gradient(total)}


def kl(estimator):
    def loss(logp, b):
        kl = nemo.kl(logp, b.ref, b.mask, estimator=estimator)
        return jaxppo.token_sum(kl, b.mask)

    return loss


def icepop(*arrays):
    return nemo.icepop_weights(*arrays, low=0.8, high=1.25)


def sequence_masked(*arrays):
    return nemo.sequence_masked_weights(*arrays, low=0.95, high=1.05)


LOSSES = {
    "nemo/ppo token": of(nemo.ppo),
    "nemo/ppo seq": of(nemo.ppo, aggregate=nemo.row_mean),
    "nemo/ppo dual c=3": of(nemo.ppo, dual_clip=3.0),
    "nemo/gspo": of(nemo.gspo, nemo.sequence_weights),
    "nemo/cispo(.2,.2)": of(nemo.cispo),
    "nemo/reinforce": reinforce,
    "nemo/on-policy": on_policy,
    "nemo/ppo+kl k3 .01": with_kl,
    "nemo/ppo+IS": of(nemo.ppo, corrected=True),
    "nemo/ppo+tis2": of(nemo.ppo, nemo.truncated_weights, corrected=True),
    "nemo/ppo+icepop(.8,1.25)": of(nemo.ppo, icepop, corrected=True),
    "nemo/ppo+seq-mask-tis(.95,1.05)": of(nemo.ppo, sequence_masked, corrected=True),
    "nemo/kl/k1": kl(jaxppo.kl_k1),
    "nemo/kl/k2": kl(jaxppo.kl_k2),
    "nemo/kl/k3": kl(jaxppo.kl_k3),
}

VALUES = {}

# No value was recorded of these: who tests them.
UNREFERENCED = dict.fromkeys(
    ["off_policy_kl", "positive_nll", "value_loss"],
    "test_recipe_oracles.py::test_a_loss_is_its_formula",
) | dict.fromkeys(
    [
        "leave_one_out_advantages",
        "group_advantages",
        "gdpo_advantages",
        "reinforce_plus_plus_advantages",
        "raw_reward_advantages",
        "token_rewards",
        "gae",
        "distillation_advantages",
    ],
    "test_recipe_oracles.py::test_a_value_is_its_formula",
)
