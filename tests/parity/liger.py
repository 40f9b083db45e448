"""Liger-Kernel 0.8.5: its names in the reference values, and the recipes."""

import jax.numpy as jnp

import jaxppo
from jaxppo.recipes import liger

row_mean = jaxppo.all_rows(jaxppo.sequence_mean)


def named(metrics, *names):
    """Liger's metrics have places, not names."""
    return {str(place): metrics[name] for place, name in enumerate(names)}


def of(recipe, **options):
    def loss(logp, b):
        loss, metrics = recipe(logp, b.old, b.adv, b.mask, **options)
        return loss, named(metrics, "clip_fraction")

    return loss


def dr_grpo(logp, b):
    return of(liger.dr_grpo, max_length=b.time)(logp, b)


def with_kl(kl):
    def loss(logp, b):
        policy, metrics = liger.grpo(logp, b.old, b.adv, b.mask)
        penalty, more = liger.kl_penalty(kl(logp, b), b.mask, aggregate=row_mean)
        total = jaxppo.Mean(policy.value + penalty.value, jnp.ones_like(policy.count))
        return total, named({**metrics, **more}, "kl", "clip_fraction")

    return loss


LOSSES = {
    "liger/grpo": of(liger.grpo),
    "liger/dapo": of(liger.dapo),
    "liger/bnpo": of(liger.bnpo),
    "liger/dr_grpo": dr_grpo,
    "liger/luspo": of(liger.luspo),
    "liger/sapo": of(liger.sapo),
    "liger/vespo": of(liger.vespo),
    "liger/cispo(eps_high=5)": of(liger.cispo, clip_eps_high=5.0),
    "liger/gspo(seq,grpo)": of(liger.gspo),
    "liger/luspo(seq)": of(liger.gspo, aggregate=jaxppo.all_rows(jaxppo.sequence_sum)),
    "liger/grpo+delta1.3": of(liger.grpo, delta=1.3),
    "liger/grpo+beta.04": with_kl(lambda logp, b: liger.kl(logp, b.ref, b.mask)),
    "liger/grpo+beta.04 bias-corr": with_kl(
        lambda logp, b: liger.bias_corrected_kl(logp, b.old, b.ref, b.mask)
    ),
}

VALUES = {}
UNREFERENCED = {}
