"""Tunix 0.1.7: `rl.algo_core` and `rl.common`, with the model's forward left out."""

from functools import partial
from importlib import import_module
from types import SimpleNamespace
from unittest import mock

AGGREGATES = [
    *("token-mean", "sequence-mean-token-mean", "sequence-mean-token-scale"),
    *("seq-mean-token-sum", "sequence-mean-token-sum-norm"),
]
CONFIG = dict(
    epsilon=0.2,
    epsilon_low=0.2,
    epsilon_high=0.2,
    epsilon_c=None,
    beta=None,
    kl_coef=0.0,
    kl_loss_mode="kl",
    kl_clamp_value=None,
    entropy_coef=None,
    temperature=1.0,
    loss_algo="grpo",
    loss_agg_mode="token-mean",
)


def core():
    return import_module("tunix.rl.algo_core")


def common():
    return import_module("tunix.rl.common")


def losses(b):
    """Policy losses, aggregates of log pi times A, and summed KL estimators."""
    calls = {
        "ppo_policy_loss": policy(b, "ppo"),
        "ppo dual c=3": policy(b, "ppo", epsilon_c=3.0),
        "grpo/token-mean": policy(b, "grpo"),
        "grpo/sequence-mean-token-mean": by_sequence(b),
        "grpo dual c=3": policy(b, "grpo", epsilon_c=3.0),
        "grpo beta .04 (k1 in loss)": policy(b, "grpo", beta=0.04),
        "grpo beta .04 low_var_kl": policy(
            b, "grpo", beta=0.04, kl_loss_mode="low_var_kl"
        ),
        "gspo-token/sequence-mean-token-mean": by_sequence(b, loss_algo="gspo-token"),
        **{f"aggregate/{mode}": partial(aggregate, b, mode) for mode in AGGREGATES},
        **{f"kl/{k}": partial(kl, b, k) for k in ("kl", "mse_kl", "low_var_kl")},
    }
    return {f"tunix/{name}": call for name, call in calls.items()}


def by_sequence(b, **options):
    return policy(b, "grpo", loss_agg_mode="sequence-mean-token-mean", **options)


def policy(b, algorithm, **options):
    """A loss whose model answers with `logp`, and with logits that it only logs."""
    config = SimpleNamespace(**CONFIG | options)
    example = SimpleNamespace(
        completion_ids=None,
        prompt_ids=None,
        completion_mask=b.mask,
        advantages=b.advantages if algorithm == "ppo" else b.adv,
        old_per_token_logps=b.old,
        ref_per_token_logps=b.ref,
        sampler_is_weights=None,
    )

    def loss(logp):
        answer = lambda *args, **kwargs: (logp, logp[..., None] * 0)
        function = getattr(
            core(), f"{algorithm}{'_policy' * (algorithm == 'ppo')}_loss_fn"
        )
        with (
            mock.patch.object(core().nnx, "split", lambda model: (None, None)),
            mock.patch.object(common(), "compute_per_token_logps", answer),
        ):
            return function(None, example, config, 0, 0)[0]

    return loss


def aggregate(b, mode, logp):
    norm = {"norm": b.time} if mode.endswith("norm") else {}
    return common().aggregate_loss(logp * b.advantages, b.mask, mode, **norm)


def kl(b, kind, logp):
    return (common().compute_kl_divergence(logp, b.ref, kind) * b.mask).sum()


def values(b):
    """Advantages, one a row for the first two."""
    rewards, size = b.outcomes, b.group_size
    return {
        "tunix/adv/grpo": lambda: core().compute_advantages(rewards, size),
        "tunix/adv/rloo": lambda: core().compute_rloo_advantages(rewards, size),
        "tunix/gae": partial(gae, b),
        "tunix/masked_whiten": lambda: core().masked_whiten(b.logp, b.mask),
    }


def gae(b):
    return core().compute_gae_advantages(b.token_rewards, b.values, b.mask, 0.99, 0.95)[
        0
    ]
