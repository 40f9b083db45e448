"""AReaL 1.0.4: what its functions are called with to give the recorded outputs."""

import jax.numpy as jnp

import jaxppo
from jaxppo.recipes import areal


def total(mean):
    """AReaL reports masks, of which the sum was recorded."""
    return jaxppo.Mean(mean.total, jnp.zeros_like(mean.count))


def policy(loss, **kwargs):
    def run(logp, b):
        out, metrics = loss(logp, b.old, b.adv, b.mask, **kwargs)
        sums = {
            "clip": total(metrics["clip_ratio"]),
            "dual": total(metrics["dual_clip_ratio"]),
        }
        return out, metrics | sums

    return run


def decoupled(correction, **kwargs):
    def run(logp, b):
        weights, more = correction(b.old, b.rollout, b.mask, **kwargs)
        out, metrics = areal.ppo(logp, b.old, b.adv, b.mask, weights=weights)
        return out, metrics | more

    return run


def summed(**kwargs):
    return lambda logp, b: jaxppo.token_sum(
        areal.approx_kl(logp, b.ref, b.mask, **kwargs), b.mask
    )


def critic(loss):
    return lambda b: loss(b.values, b.old_values, b.returns, b.mask)[0].value


LOSSES = {
    "areal/ppo": policy(areal.ppo),
    "areal/ppo c_clip=3": policy(areal.ppo, dual_clip=3.0),
    "areal/ppo clip-higher .28": policy(areal.ppo, clip_eps_high=0.28),
    "areal/gspo(sequence)": policy(areal.sequence_ppo),
    "areal/decoupled (behav=rollout)": decoupled(
        areal.reject_tokens_by_ratio, upper=1.2
    ),
    "areal/decoupled clamp": decoupled(areal.clamp_tokens, upper=1.1),
    "areal/decoupled seq-ratio mask": decoupled(
        areal.reject_sequences_by_ratio, upper=1.05
    ),
    "areal/decoupled kl_k3 token mask": decoupled(
        areal.reject_tokens_by_kl, upper=0.02
    ),
    "areal/sapo": policy(areal.sapo),
    "areal/kl/k1": summed(),
    "areal/kl/k2": summed(estimator=jaxppo.kl_k2),
    "areal/kl/k3": summed(estimator=jaxppo.kl_k3),
}

VALUES = {
    "areal/critic mse(clip .5)": critic(areal.value_loss),
    "areal/critic huber": critic(areal.huber_value_loss),
    "areal/m2po mask(.01)": lambda b: areal.m2po_mask(
        b.old, b.rollout, b.mask, threshold=0.01
    ).astype(jnp.float32),
}

UNREFERENCED = {
    "sequence_sapo": "no value recorded",
    "loglinear_log_probs": "no value recorded: needs versions",
    "shaped_rewards": "no value recorded",
    "reject_sequences_by_kl": "no value recorded",
    "clamp_sequences_by_ratio": "no value recorded",
    "token_rewards": "no value recorded: inside `_compute_advantages`, with an engine",
    "gae": "as token_rewards",
    "batch_normalised": "no value recorded",
    "group_normalised": "no value recorded",
    "group_centred": "no value recorded",
    "leave_one_out": "no value recorded",
}
