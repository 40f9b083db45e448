"""verl 0.9.1: `core_algos` and `rollout_corr_helper`."""

from functools import partial
from importlib import import_module
from types import SimpleNamespace

MODES = [
    *("token-mean", "token-sum", "seq-mean-token-mean"),
    *("seq-mean-token-sum", "seq-mean-token-sum-norm"),
]
OTHERS = {
    "dppo_tv": "token-mean",
    "dppo_kl": "token-mean",
    "gspo": "seq-mean-token-mean",
    "sapo": "seq-mean-token-mean",
    "gpg": "token-mean",
    "geo_mean": "token-mean",
    "cispo": "token-mean",
}
IS = [("token", 2.0), ("token", "0.8_1.25"), ("sequence", 2.0), ("sequence", "0.5_1.2")]
RS = [
    ("token_k1", "0.8_1.25"),
    ("token_k2", 0.02),
    ("token_k3", 0.02),
    ("seq_sum_k1", "0.5_2.0"),
    ("seq_mean_k1", "0.9_1.1"),
    ("seq_mean_k3", 0.01),
    ("seq_max_k2", 0.05),
    ("seq_max_k3", 0.05),
    ("seq_mean_k1,token_k2", "0.9_1.1,0.02"),
]


def core():
    return import_module("verl.trainer.ppo.core_algos")


def correction():
    return import_module("verl.trainer.ppo.rollout_corr_helper")


def config(**policy_loss):
    """An actor's, with what verl insists on."""
    actor = import_module("verl.workers.config.actor")
    return actor.ActorConfig(
        strategy="fsdp",
        rollout_n=1,
        ppo_micro_batch_size_per_gpu=1,
        policy_loss=actor.PolicyLossConfig(**policy_loss),
    )


def losses(b):
    """Policy losses, and estimators of the KL divergence summed over tokens."""
    return {**vanilla(b), **others(b), **covariance(b), **kls(b)}


def policy(b, name, mode="token-mean", weights=None, **options):
    """A registered loss as a function of log pi."""
    loss, actor = core().get_policy_loss_fn(name), config(**options)
    return lambda logp: loss(b.old, logp, b.advantages, b.mask, mode, actor, weights)


def vanilla(b):
    calls = {f"verl/vanilla/{mode}": policy(b, "vanilla", mode) for mode in MODES}
    weights = corrected(b, rollout_is="token")[0].batch["rollout_is_weights"]
    calls["verl/vanilla/token-mean x token-TIS"] = policy(b, "vanilla", weights=weights)
    return calls


def others(b):
    calls = {f"verl/{n}/{mode}": policy(b, n, mode) for n, mode in OTHERS.items()}
    calls["verl/dro(beta=.1)"] = policy(b, "dro", dro_beta=0.1)
    return calls | {"verl/reinforce(IS from rollout)": partial(reinforce, b)}


def reinforce(b, logp):
    return core().compute_policy_loss_reinforce(
        b.rollout, logp, b.advantages, b.mask, "seq-mean-token-sum", config()
    )


def covariance(b):
    clipped = policy(b, "clip_cov", clip_cov_ratio=0.1, clip_cov_lb=0.05)

    def seeded(logp):
        import_module("torch").manual_seed(0)
        return clipped(logp)

    return {
        "verl/kl_cov/token-mean": policy(b, "kl_cov", kl_cov_ratio=0.1),
        "verl/clip_cov(seed0, ratio.1, lb.05)": seeded,
    }


def kls(b):
    def summed(kind, logp):
        return (core().kl_penalty(logp, b.ref, kind) * b.mask).sum()

    kinds = ["kl", "abs", "mse", "low_var_kl", "k3+", "k1+"]
    return {f"verl/kl_penalty/{kind}": partial(summed, kind) for kind in kinds}


def values(b):
    """The critic's loss, advantages, and corrections for the rollout's policy."""
    return {
        "verl/value_loss(clip .2)": partial(critic, b),
        **{f"verl/adv/{name}": call for name, call in advantages(b).items()},
        **{f"verl/rollout_is/{lv}/{at}": partial(weights, b, lv, at) for lv, at in IS},
        **{f"verl/rollout_rs/{op}/{at}": partial(keep, b, op, at) for op, at in RS},
        "verl/offpolicy_metrics(chi2_token)": partial(offpolicy, b),
    }


def critic(b):
    loss, clip_fraction = core().compute_value_loss(
        b.values, b.returns, b.old_values, b.mask, 0.2
    )
    return loss, {"0": clip_fraction}


def advantages(b):
    """Each with the returns as its metric "0"."""

    def of(name, **options):
        options |= dict(token_level_rewards=b.token_rewards, response_mask=b.mask)
        return partial(estimated, f"compute_{name}", options)

    grouped = lambda name, **options: of(
        f"{name}_outcome_advantage", index=b.group, **options
    )
    by_variance = lambda name: of(
        f"{name}_optimal_token_baseline_advantage".lstrip("_"),
        **dict(index=b.group, old_log_probs=b.old, sum_pi_squared=b.sum_pi_squared),
    )
    return {
        "gae(.99,.95)": of(
            "gae_advantage_return", values=b.values, gamma=0.99, lam=0.95
        ),
        "grpo": grouped("grpo"),
        "grpo_no_std": grouped("grpo", norm_adv_by_std_in_grpo=False),
        "grpo_vectorized": grouped("grpo_vectorized"),
        "grpo_passk": grouped("grpo_passk", config={"norm_adv_by_std_in_grpo": True}),
        "rloo": grouped("rloo"),
        "rloo_vectorized": grouped("rloo_vectorized"),
        "opo": grouped("opo"),
        "reinforce_pp": of(
            "reinforce_plus_plus_outcome_advantage", config=SimpleNamespace(gamma=0.99)
        ),
        "reinforce_pp_baseline": grouped("reinforce_plus_plus_baseline"),
        "remax": of("remax_outcome_advantage", reward_baselines=b.outcomes * 0 + 0.3),
        "gpg": grouped("gpg"),
        "otb": by_variance(""),
        "tir_otb": by_variance("multi_turn"),
    }


def estimated(name, options):
    advantage, returns = getattr(core(), name)(**options)
    return advantage, {"0": returns}


def corrected(b, rollout_is=None, threshold=2.0, rollout_rs=None, rs_threshold=None):
    """Weights, the mask that is left, and metrics."""
    return correction().compute_rollout_correction_and_rejection_mask(
        *(b.old, b.rollout, b.mask, rollout_is, threshold, False),
        *(rollout_rs, rs_threshold),
    )


def weights(b, level, threshold):
    proto, _, metrics = corrected(b, level, threshold)
    return proto.batch["rollout_is_weights"], metrics


def keep(b, options, threshold):
    _, mask, metrics = corrected(b, rollout_rs=options, rs_threshold=threshold)
    return mask, metrics


def offpolicy(b):
    metrics = correction().compute_offpolicy_metrics(b.old, b.rollout, b.mask)
    return metrics["chi2_token"], metrics
