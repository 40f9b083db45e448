"""OpenRLHF 0.11.2: what its functions are called with to give the recorded outputs."""

import jaxppo
from jaxppo.recipes import openrlhf

# `PolicyLoss` returns a tuple; the actor logs it under these names.
POSITIONS = {
    "ppo_clip_ratio": "0",
    "ppo_kl": "1",
    "vllm_kl": "2",
    "is_filter_ratio": "3",
}


def by_position(metrics):
    return {POSITIONS.get(name, name): x for name, x in metrics.items()}


def policy(loss, **kwargs):
    def run(logp, b):
        out, metrics = loss(logp, b.old, b.adv, b.mask, **kwargs)
        return out, by_position(metrics)

    return run


def corrected(correction, **kwargs):
    def run(logp, b):
        weights, more = correction(b.old, b.rollout, b.mask, **kwargs)
        out, metrics = openrlhf.ppo(logp, b.old, b.adv, b.mask, weights=weights)
        return out, by_position(metrics | more)

    return run


def summed(**kwargs):
    return lambda logp, b: jaxppo.token_sum(
        openrlhf.approx_kl(logp, b.ref, b.mask, **kwargs), b.mask
    )


def unbiased(**kwargs):
    return lambda logp, b: jaxppo.token_sum(
        openrlhf.unbiased_gradient_kl(logp, b.ref, b.old, b.mask, **kwargs), b.mask
    )


LOSSES = {
    "openrlhf/ppo/token-mean": policy(openrlhf.ppo),
    "openrlhf/ppo/seq-mean-token-mean": policy(
        openrlhf.ppo, aggregate=jaxppo.sequence_mean
    ),
    "openrlhf/ppo/dual_clip=3": policy(openrlhf.ppo, dual_clip=3.0),
    "openrlhf/gspo": policy(openrlhf.gspo),
    "openrlhf/ppo+IS(token,clip,ratio,(0.0, 2.0))": corrected(
        openrlhf.clip_weights, low=0.0, high=2.0
    ),
    "openrlhf/ppo+IS(token,mask,ratio,(0.8, 1.25))": corrected(
        openrlhf.mask_weights, low=0.8, high=1.25
    ),
    "openrlhf/ppo+IS(seq,mask,ratio,(0.9, 1.1))": corrected(
        openrlhf.sequence_mask_weights, low=0.9, high=1.1
    ),
    "openrlhf/ppo+IS(token,mask,tv,(-1.0, 0.05))": corrected(
        openrlhf.divergence_weights, high=0.05, divergence=jaxppo.binary_tv
    ),
    "openrlhf/ppo+IS(seq,mask,binary_kl,(-1.0, 0.02))": corrected(
        openrlhf.sequence_divergence_weights, high=0.02
    ),
    "openrlhf/kl/k1": summed(),
    "openrlhf/kl/k2": summed(estimator=jaxppo.kl_k2),
    "openrlhf/kl/k3": summed(estimator=jaxppo.kl_k3),
    "openrlhf/kl/k1 unbiased_gradient": unbiased(),
    "openrlhf/kl/k3 unbiased_gradient": unbiased(estimator=jaxppo.kl_k3),
}

VALUES = {
    "openrlhf/value(clip .5)": lambda b: (
        openrlhf.value_loss(b.values, b.old_values, b.returns, b.mask)[0].value
    ),
}

# No value was recorded of these: who tests them.
UNREFERENCED = dict.fromkeys(
    [
        "adaptive_kl",
        "token_rewards",
        "gae",
        "whiten",
        "cumulative_returns",
        "reinforce_advantages",
        "reinforce_baseline_advantages",
        "dr_grpo_advantages",
        "group_norm_advantages",
        "rloo_advantages",
        "flash_reinforce_advantages",
        "stop_properly_penalty",
    ],
    "test_recipe_oracles.py::test_a_value_is_its_formula",
)
