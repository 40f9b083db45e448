"""The numbers of other systems, recorded from their own code, out of our functions.

`data/reference_values.json` holds 212 outputs of verl, OpenRLHF, TRL, Liger, AReaL,
slime, SkyRL, NeMo-RL, open-instruct, ROLL, torchrl, Tunix and rlax on one ragged batch,
with gradients. JAXPPO_REFERENCE_VALUES names another file of that form.
"""

import functools
import json
import os
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxppo

HERE = Path(__file__).parent
FILE = os.environ.get("JAXPPO_REFERENCE_VALUES", HERE / "data/reference_values.json")
REFERENCE = json.loads(Path(FILE).read_text("utf-8"))
OUTPUTS = REFERENCE["outputs"]

b = SimpleNamespace(
    **{name: jnp.array(x, jnp.float32) for name, x in REFERENCE["inputs"].items()}
)
b.mask = b.mask.astype(bool)
b.adv = b.adv[:, None]  # one per sequence
ROWS, TIME = b.mask.shape
GROUP = int(np.sum(b.group == b.group[0]))

token_mean, token_sum = jaxppo.token_mean, jaxppo.token_sum
sequence_mean, sequence_sum = jaxppo.sequence_mean, jaxppo.sequence_sum
sum_over_time = functools.partial(sequence_sum, scale=1 / TIME)  # Dr. GRPO's


def all_rows(aggregate):
    """Divided by all rows, those without a token included (TRL, Liger, SkyRL)."""
    return lambda x, mask: jaxppo.Mean(aggregate(x, mask).total, jnp.float32(ROWS))


def token_sum_over_time(x, mask):
    return token_sum(x, mask) * (1 / TIME)


def prompt_mean(x, mask):
    """The mean over prompts of their token means."""
    prompts = (x.reshape(-1, GROUP * TIME), mask.reshape(-1, GROUP * TIME))
    return jaxppo.Mean(jnp.sum(jax.vmap(token_mean)(*prompts).value), ROWS / GROUP)


# --- losses: functions of log pi, a Mean each ---


def ratio(logp):
    return jaxppo.log_ratio(logp, b.old, b.mask)


def sequence_ratio(logp):
    return jaxppo.sequence_log_ratio(logp, b.old, b.mask)


def product_ratio(logp):
    """Of a whole sequence, not normalised by its length."""
    return jnp.broadcast_to(jnp.sum(ratio(logp), 1, keepdims=True), b.mask.shape)


def ppo(
    aggregate=token_mean, *, x=ratio, weights=lambda: 1.0, plus=lambda logp: 0.0, **eps
):
    def loss(logp):
        per_token = jaxppo.clipped_surrogate(x(logp), b.adv, **eps)
        return aggregate(per_token * weights() + plus(logp), b.mask)

    return loss


def kl(estimator, aggregate=token_sum):
    return lambda logp: aggregate(estimator(ref_ratio(logp)), b.mask)


def ref_ratio(logp):
    return jaxppo.log_ratio(logp, b.ref, b.mask)


def plus_kl(coef, estimator, weight=lambda logp: 1.0):
    return lambda logp: coef * weight(logp) * estimator(ref_ratio(logp))


def score(logp):
    """1, with the gradient of log pi."""
    return jnp.exp(jaxppo.log_ratio(logp, logp, b.mask))


def current_ratio(logp):
    return jnp.exp(ratio(logp))


def reinforce(aggregate=token_mean, weights=lambda x: 1.0, plus=lambda logp: 0.0):
    def loss(logp):
        per_token = jaxppo.policy_gradient(logp, b.adv, b.mask)
        return aggregate(per_token * weights(ratio(logp)) + plus(logp), b.mask)

    return loss


def cispo(cap, floor=0.0, aggregate=token_mean):
    weights = lambda x: jnp.maximum(jaxppo.truncated_weights(x, cap=cap), floor)
    return reinforce(aggregate, weights)


def unbiased(estimator):
    """OpenRLHF's: k2's gradient, by sample weighted with the ratio up to 10."""

    def loss(logp):
        weights = jaxppo.truncated_weights(ratio(logp), cap=10.0)
        plain = jaxppo.unbiased_gradient_kl(ref_ratio(logp), estimator=estimator)
        value = jax.lax.stop_gradient(plain)
        return token_sum(value + weights * (plain - value), b.mask)

    return loss


def aggregated(aggregate):
    return lambda logp: aggregate(logp * b.adv, b.mask)


def drift():
    """From the sampler to the trainer."""
    return jaxppo.log_ratio(b.old, b.rollout, b.mask)


def mean_drift():
    return jaxppo.sequence_log_ratio(b.old, b.rollout, b.mask)


def total_drift():
    return jnp.broadcast_to(jnp.sum(drift(), 1, keepdims=True), b.mask.shape)


def capped(cap, x=drift):
    return lambda: jaxppo.truncated_weights(x(), cap=cap)


def band(low, high, x=drift):
    return lambda: jaxppo.band_weights(x(), low=low, high=high)


raw = capped(np.inf)


def where(condition, weights=raw):
    return lambda: jnp.where(condition(), weights(), 0)


def sequence_gate(low, high):
    """Each token's own weight, in sequences whose mean ratio lies in a band."""
    return where(lambda: band(low, high, mean_drift)() > 0)


def rollout_is(logp):
    """SkyRL's: outside the band a token is dropped, not held."""
    x = jaxppo.log_ratio(logp, b.rollout, b.mask)
    weights = jaxppo.band_weights(x, low=0.8, high=1.2)
    return token_mean(weights * jaxppo.policy_gradient(logp, b.adv, b.mask), b.mask)


def entropy_bonus(logp):
    """Two means, each divided by its own count."""
    loss = ppo(all_rows(sequence_mean))(logp)
    return jaxppo.Mean(loss.value - 0.01 * token_mean(b.entropy, b.mask).value, 1.0)


def unmasked_sum_over_tokens(logp):
    """ROLL's `token-mean`: the sum forgets the mask, the count does not."""
    x = jaxppo.log_ratio(logp, b.old)
    total = token_sum(jaxppo.clipped_surrogate(x, b.adv)).total
    return jaxppo.Mean(total, token_mean(x, b.mask).count)


def unmasked_lengths(logp):
    """Liger's `luspo`: weighted by length, and without the mask."""
    loss = jaxppo.clipped_surrogate(jaxppo.log_ratio(logp, b.old), b.adv)
    lengths = jnp.sum(b.mask, 1, keepdims=True).astype(jnp.float32)
    return token_mean(loss * lengths)


DUAL = dict(dual_clip=3.0)
UNCLIPPED = dict(clip_eps=0.9999, clip_eps_high=1e9)
DAPO = dict(clip_eps=0.2, clip_eps_high=0.272)
k1, k2, k3 = jaxppo.kl_k1, jaxppo.kl_k2, jaxppo.kl_k3

LOSSES = {
    # PPO
    "verl/vanilla/token-mean": ppo(**DUAL),
    "verl/vanilla/token-sum": ppo(token_sum, **DUAL),
    "verl/vanilla/seq-mean-token-sum": ppo(sequence_sum, **DUAL),
    "verl/vanilla/seq-mean-token-mean": ppo(sequence_mean, **DUAL),
    "verl/vanilla/seq-mean-token-sum-norm": ppo(sum_over_time, **DUAL),
    "openrlhf/ppo/token-mean": ppo(),
    "openrlhf/ppo/seq-mean-token-mean": ppo(sequence_mean),
    "openrlhf/ppo/dual_clip=3": ppo(**DUAL),
    "trl/grpo": ppo(all_rows(sequence_mean)),
    "trl/dapo": ppo(),
    "trl/bnpo": ppo(),
    "trl/dr_grpo": ppo(all_rows(sum_over_time)),
    "trl/luspo": ppo(all_rows(sequence_sum)),
    "trl/grpo+delta1.3": ppo(all_rows(sequence_mean), dual_clip=1.3),
    "trl/dapo+delta3 (== dual clip c=3)": ppo(**DUAL),
    "trl/grpo+entropy_coef.01": entropy_bonus,
    "trl/rloo(seq ratio)": ppo(all_rows(sequence_mean), x=product_ratio),
    "liger/grpo": ppo(all_rows(sequence_mean)),
    "liger/dapo": ppo(),
    "liger/bnpo": ppo(),
    "liger/dr_grpo": ppo(all_rows(sum_over_time)),
    "liger/luspo": unmasked_lengths,
    "liger/grpo+delta1.3": ppo(all_rows(sequence_mean), dual_clip=1.3),
    "areal/ppo": ppo(),
    "areal/ppo c_clip=3": ppo(**DUAL),
    "areal/ppo clip-higher .28": ppo(clip_eps_high=0.28),
    "slime/ppo token-mean": ppo(),
    "slime/ppo dual clip 3": ppo(**DUAL),
    "skyrl/regular/token_mean": ppo(),
    "skyrl/regular/token_mean_legacy": ppo(),
    "skyrl/regular/sequence_mean": ppo(all_rows(sequence_mean)),
    "skyrl/regular/seq_mean_token_sum_norm": ppo(all_rows(sum_over_time)),
    "skyrl/regular/prompt_mean": ppo(prompt_mean),
    "skyrl/dual_clip": ppo(**DUAL),
    "nemo/ppo token": ppo(),
    "nemo/ppo seq": ppo(sequence_mean),
    "nemo/ppo dual c=3": ppo(**DUAL),
    "nemo/on-policy": ppo(x=lambda logp: jaxppo.log_ratio(logp, logp, b.mask)),
    "open-instruct/dapo token-mean": ppo(**DAPO),
    "roll/ppo core + agg_loss/token-mean": unmasked_sum_over_tokens,
    "roll/ppo core + agg_loss/seq-mean-token-sum": ppo(sequence_sum),
    "roll/ppo core + agg_loss/seq-mean-token-mean": ppo(sequence_mean),
    "roll/ppo core + agg_loss/seq-mean-token-sum-norm": ppo(token_sum_over_time),
    "tunix/ppo_policy_loss": ppo(),
    "tunix/ppo dual c=3": ppo(**DUAL),
    "tunix/grpo/token-mean": ppo(),
    "tunix/grpo/sequence-mean-token-mean": ppo(sequence_mean),
    "tunix/grpo dual c=3": ppo(**DUAL),
    "skyrl-tinker/importance_sampling_loss (sum)": ppo(token_sum, **UNCLIPPED),
    "skyrl-tinker/ppo_loss (sum)": ppo(token_sum),
    "rlax/clipped_surrogate_pg_loss (row mean, no mask)": lambda logp: token_mean(
        jaxppo.clipped_surrogate(jaxppo.log_ratio(logp, b.old), b.adv)
    ),
    # GSPO
    "verl/gspo/seq-mean-token-mean": ppo(sequence_mean, x=sequence_ratio),
    "openrlhf/gspo": ppo(sequence_mean, x=sequence_ratio),
    "trl/gspo(seq,grpo)": ppo(all_rows(sequence_mean), x=sequence_ratio),
    "trl/luspo(seq)": ppo(all_rows(sequence_sum), x=sequence_ratio),
    "liger/gspo(seq,grpo)": ppo(all_rows(sequence_mean), x=sequence_ratio),
    "liger/luspo(seq)": ppo(all_rows(sequence_sum), x=sequence_ratio),
    "areal/gspo(sequence)": ppo(x=sequence_ratio),
    "skyrl/gspo/sequence_mean": ppo(all_rows(sequence_mean), x=sequence_ratio),
    "nemo/gspo": ppo(sequence_mean, x=sequence_ratio),
    "tunix/gspo-token/sequence-mean-token-mean": ppo(sequence_mean, x=sequence_ratio),
    # weighted log-probs
    "verl/gpg/token-mean": reinforce(),
    "verl/cispo/token-mean": cispo(1.2, 0.8),
    "verl/dro(beta=.1)": reinforce(plus=lambda logp: 0.1 * k2(ratio(logp))),
    "verl/reinforce(IS from rollout)": reinforce(sequence_sum),
    "trl/cispo(eps_high=5)": cispo(5.0),
    "trl/cispo(eps_high=1.2)": cispo(1.2),
    "liger/cispo(eps_high=5)": cispo(5.0),
    "slime/cispo": cispo(1.2, 0.8),
    "skyrl/cispo": cispo(5.0),
    "nemo/cispo(.2,.2)": cispo(1.2, 0.8),
    "nemo/reinforce": reinforce(),
    "open-instruct/cispo token-mean": cispo(1.272),
    "skyrl-tinker/cispo_loss (sum)": cispo(1.2, 0.8, token_sum),
    # rollout correction
    "verl/vanilla/token-mean x token-TIS": ppo(weights=capped(2.0), **DUAL),
    "openrlhf/ppo+IS(token,clip,ratio,(0.0, 2.0))": ppo(weights=capped(2.0)),
    "openrlhf/ppo+IS(token,mask,ratio,(0.8, 1.25))": ppo(weights=band(0.8, 1.25)),
    "openrlhf/ppo+IS(seq,mask,ratio,(0.9, 1.1))": ppo(weights=sequence_gate(0.9, 1.1)),
    "trl/grpo+token TIS": ppo(all_rows(sequence_mean), weights=capped(3.0)),
    "areal/decoupled (behav=rollout)": ppo(weights=band(0.0, 1.2)),
    "areal/decoupled clamp": ppo(weights=capped(1.1)),
    "areal/decoupled seq-ratio mask": ppo(weights=band(0.0, 1.05, mean_drift)),
    "areal/decoupled kl_k3 token mask": ppo(weights=where(lambda: k3(drift()) <= 0.02)),
    "skyrl/rollout_is": rollout_is,
    "nemo/ppo+IS": ppo(weights=raw),
    "nemo/ppo+tis2": ppo(weights=capped(2.0)),
    "nemo/ppo+icepop(.8,1.25)": ppo(weights=band(0.8, 1.25)),
    "nemo/ppo+seq-mask-tis(.95,1.05)": ppo(weights=sequence_gate(0.95, 1.05)),
    "open-instruct/dapo + rho clamp[0,2]": ppo(weights=capped(2.0), **DAPO),
    # with a KL term
    "trl/grpo+beta.04(bias-corrected kl)": ppo(
        all_rows(sequence_mean), plus=plus_kl(0.04, k3, current_ratio)
    ),
    "trl/grpo+beta.04(plain k3)": ppo(all_rows(sequence_mean), plus=plus_kl(0.04, k3)),
    "liger/grpo+beta.04": ppo(all_rows(sequence_mean), plus=plus_kl(0.04, k3)),
    "liger/grpo+beta.04 bias-corr": ppo(
        all_rows(sequence_mean), plus=plus_kl(0.04, k3, current_ratio)
    ),
    "nemo/ppo+kl k3 .01": ppo(plus=plus_kl(0.01, k3, score)),
    "open-instruct/dapo beta .04 kl_estimator=0": ppo(plus=plus_kl(0.04, k1), **DAPO),
    "open-instruct/dapo beta .04 kl_estimator=1": ppo(plus=plus_kl(0.04, k2), **DAPO),
    "open-instruct/dapo beta .04 kl_estimator=2": ppo(plus=plus_kl(0.04, k3), **DAPO),
    "open-instruct/dapo beta .04 kl_estimator=3": ppo(
        plus=plus_kl(0.04, k1, current_ratio), **DAPO
    ),
    "tunix/grpo beta .04 (k1 in loss)": ppo(plus=plus_kl(0.04, k1)),
    "tunix/grpo beta .04 low_var_kl": ppo(plus=plus_kl(0.04, k3)),
    # KL alone
    "verl/kl_penalty/kl": kl(k1),
    "verl/kl_penalty/mse": kl(k2),
    "verl/kl_penalty/low_var_kl": kl(k3),
    "verl/kl_penalty/k3+": kl(jaxppo.unbiased_gradient_kl),
    "verl/kl_penalty/k1+": kl(
        functools.partial(jaxppo.unbiased_gradient_kl, estimator=k1)
    ),
    "openrlhf/kl/k1 unbiased_gradient": unbiased(k1),
    "openrlhf/kl/k3 unbiased_gradient": unbiased(k3),
    "slime/kl/low_var_kl": kl(k3),
    "roll/kl/kl": kl(k1),
    "roll/kl/mse": kl(k2),
    "roll/kl/k3": kl(k3),
    "tunix/kl/kl": kl(k1),
    "tunix/kl/mse_kl": kl(k2),
    "tunix/kl/low_var_kl": kl(k3),
    **{
        f"{system}/kl/{name}": kl(estimator)
        for system in ("openrlhf", "areal", "slime", "skyrl", "nemo")
        for name, estimator in [("k1", k1), ("k2", k2), ("k3", k3)]
    },
    # aggregation
    "tunix/aggregate/token-mean": aggregated(token_mean),
    "tunix/aggregate/sequence-mean-token-mean": aggregated(sequence_mean),
    "tunix/aggregate/sequence-mean-token-scale": aggregated(sum_over_time),
    "tunix/aggregate/seq-mean-token-sum": aggregated(sequence_sum),
    "tunix/aggregate/sequence-mean-token-sum-norm": aggregated(token_sum_over_time),
}


# --- values, advantages and weights: compared where the mask is 1 ---


def critic(aggregate, clip_eps):
    def value():
        loss = jaxppo.clipped_value(
            b.values, b.old_values, b.returns, b.mask, clip_eps=clip_eps
        )
        return aggregate(loss, b.mask).value

    return value


def gae(mask=None):
    return jaxppo.gae(b.token_rewards, b.values, 0.99, lambda_=0.95, mask=mask)


def to_go(discounts, mask=None):
    return jaxppo.discounted_returns(b.token_rewards, discounts, mask=mask)


def whiten(x):
    return jaxppo.whiten(x, b.mask, ddof=1)


def over_tokens(per_sequence):
    return jnp.broadcast_to(per_sequence[:, None], b.mask.shape)


def outcomes():
    return jnp.sum(b.token_rewards, 1, where=b.mask)


def grpo(scale_by_std=True):
    return jaxppo.group_advantages(
        outcomes(), group_size=GROUP, scale_by_std=scale_by_std
    )


def rloo():
    return jaxppo.leave_one_out_advantages(outcomes(), group_size=GROUP)


def restarting():
    """SkyRL's REINFORCE++: what comes after a step that is masked is forgotten."""
    return to_go(0.99 * jnp.roll(b.mask, -1, 1).astype(jnp.float32))


def vtrace_errors():
    x = jaxppo.log_ratio(b.logp, b.old)
    return jaxppo.vtrace(x, b.token_rewards, b.values, 0.99).returns - b.values


VALUES = {
    "verl/value_loss(clip .2)": critic(token_mean, 0.2),
    "openrlhf/value(clip .5)": critic(token_mean, 0.5),
    "areal/critic mse(clip .5)": critic(token_mean, 0.5),
    "skyrl/critic(.2)": critic(all_rows(sequence_mean), 0.2),
    "verl/adv/gae(.99,.95)": lambda: whiten(gae(b.mask).advantages),
    "tunix/gae": lambda: whiten(gae(b.mask).advantages),
    "skyrl/adv/gae": lambda: whiten(gae().advantages),
    "slime/gae vanilla(.99,.95)": lambda: gae().advantages,
    "slime/gae chunked(.99,.95)": lambda: gae().advantages,
    "roll/gae(.99,.95)": lambda: gae().advantages,
    "torchrl/gae": lambda: gae().advantages,
    "torchrl/vec_gae": lambda: gae().advantages,
    "rlax/truncated_gae row0": lambda: gae().advantages[0],
    "rlax/vtrace row0 errors": lambda: vtrace_errors()[0],
    "verl/adv/grpo": lambda: over_tokens(grpo()),
    "verl/adv/grpo_vectorized": lambda: over_tokens(grpo()),
    "skyrl/adv/grpo": lambda: over_tokens(grpo()),
    "tunix/adv/grpo": grpo,
    "verl/adv/grpo_no_std": lambda: over_tokens(grpo(scale_by_std=False)),
    "verl/adv/rloo": lambda: over_tokens(rloo()),
    "verl/adv/rloo_vectorized": lambda: over_tokens(rloo()),
    "skyrl/adv/rloo": lambda: over_tokens(rloo()),
    "tunix/adv/rloo": rloo,
    "verl/adv/reinforce_pp": lambda: whiten(to_go(0.99, b.mask)),
    "verl/adv/reinforce_pp_baseline": lambda: whiten(over_tokens(grpo(False))),
    "skyrl/adv/reinforce++": lambda: whiten(restarting()),
    "verl/adv/remax": lambda: to_go(1.0, b.mask) - 0.3,
    "tunix/masked_whiten": lambda: whiten(b.logp),
    "verl/rollout_is/token/2.0": capped(2.0),
    "verl/rollout_is/token/0.8_1.25": band(0.8, 1.25),
    "verl/rollout_is/sequence/2.0": capped(2.0, total_drift),
    "verl/rollout_is/sequence/0.5_1.2": band(0.5, 1.2, total_drift),
    "verl/offpolicy_metrics(chi2_token)": lambda: (
        jaxppo.masked_mean(raw() ** 2, b.mask) - 1
    ),
}


RETURNS = {
    "verl/adv/gae(.99,.95)": lambda: gae(b.mask).returns,
    "skyrl/adv/gae": lambda: gae().returns,
    "slime/gae vanilla(.99,.95)": lambda: gae().returns,
    "slime/gae chunked(.99,.95)": lambda: gae().returns,
    "roll/gae(.99,.95)": lambda: gae().returns,
}


# --- what they log, through `ppo_loss` ---


@functools.cache
def logged():
    """Our metrics of plain PPO, and of the sampler's drift as if it were a policy's."""
    inputs = dict(ref_log_probs=b.ref, entropy=b.entropy)
    _, ppo = jaxppo.ppo_loss(b.logp, b.old, b.adv, b.mask, **inputs)
    _, drift = jaxppo.ppo_loss(b.old, b.rollout, b.adv, b.mask)
    metrics = jaxppo.finalize(ppo)
    metrics |= {f"drift, {name}": x for name, x in jaxppo.finalize(drift).items()}
    metrics["clipped"] = metrics["clip_fraction_lower"] + metrics["clip_fraction_upper"]
    weights = capped(2.0)()
    metrics["sample size"] = jaxppo.effective_sample_size(jnp.log(weights), b.mask)
    return metrics


METRICS = {
    "verl/vanilla/token-mean": {
        "actor/ppo_kl": "approx_kl_k1",
        "actor/pg_clipfrac": "clipped",
    },
    "openrlhf/ppo/token-mean": {"0": "clipped", "1": "approx_kl_k1"},
    "trl/dapo": {
        "entropy": "entropy",
        "clip_ratio/low_mean": "clip_fraction_lower",
        "clip_ratio/high_mean": "clip_fraction_upper",
        "clip_ratio/region_mean": "clipped",
    },
    "trl/grpo+beta.04(plain k3)": {"kl": "kl"},
    "liger/grpo+beta.04": {"0": "kl", "1": "clipped"},
    "skyrl/regular/token_mean": {"clip_ratio": "clipped"},
    "skyrl/cispo": {"cispo/ratio_max": "ratio_max", "cispo/ratio_min": "ratio_min"},
    "nemo/ppo token": {
        "loss": "policy_loss",
        "probs_ratio_min": "ratio_min",
        "probs_ratio_max": "ratio_max",
    },
    "verl/offpolicy_metrics(chi2_token)": {
        "kl": "drift, approx_kl_k1",
        "k3_kl": "drift, approx_kl",
    },
    "verl/rollout_is/token/2.0": {
        "rollout_corr/rollout_is_eff_sample_size": "sample size",
    },
}


# --- the comparison ---

close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradient(name):
    loss = lambda logp: LOSSES[name](logp).value
    value, grad = jax.value_and_grad(loss)(b.logp)
    close(value, OUTPUTS[name]["value"])
    close(grad, OUTPUTS[name]["grad"])


def close_where_it_counts(value, expected):
    assert value.shape == np.shape(expected)
    mask = b.mask if value.shape == b.mask.shape else True
    close(np.where(mask, value, 0), np.where(mask, expected, 0))


@pytest.mark.parametrize("name", VALUES)
def test_value(name):
    close_where_it_counts(VALUES[name](), OUTPUTS[name]["value"])


@pytest.mark.parametrize("name", RETURNS)
def test_returns(name):
    close_where_it_counts(RETURNS[name](), OUTPUTS[name]["aux"]["0"])


@pytest.mark.parametrize("name", METRICS)
def test_metrics(name):
    for theirs, ours in METRICS[name].items():
        close(logged()[ours], OUTPUTS[name]["aux"][theirs], err_msg=theirs)


def test_how_many_are_reproduced():
    reached = LOSSES.keys() | VALUES.keys()
    print(f"{len(reached)} of {len(OUTPUTS)}")
    assert reached <= OUTPUTS.keys()
    assert len(reached) == len(LOSSES) + len(VALUES) == 167
