"""OpenRLHF 0.11.2: `models.loss` and `models.utils`."""

from functools import partial
from importlib import import_module

# Level, mode, gate and band of the correction for the rollout's policy.
CORRECTIONS = [
    ("token", "clip", "ratio", (0.0, 2.0)),
    ("token", "mask", "ratio", (0.8, 1.25)),
    ("seq", "mask", "ratio", (0.9, 1.1)),
    ("token", "mask", "tv", (-1.0, 0.05)),
    ("seq", "mask", "binary_kl", (-1.0, 0.02)),
]


def losses(b):
    """Policy losses, and estimators of the KL divergence summed over tokens."""
    calls = {
        "ppo/token-mean": policy(b),
        "ppo/seq-mean-token-mean": policy(b, token_level_loss=False),
        "ppo/dual_clip=3": policy(b, dual_clip=3.0),
        "gspo": policy(b, policy_loss_type="gspo"),
    }
    for level, mode, gate, band in CORRECTIONS:
        calls[f"ppo+IS({level},{mode},{gate},{band})"] = policy(
            b,
            is_correction_level=level,
            is_correction_mode=mode,
            is_correction_gating=gate,
            is_correction_threshold=band,
        )
    return {f"openrlhf/{name}": call for name, call in (calls | kls(b)).items()}


def policy(b, **options):
    """Metrics are named by their place."""

    def loss(logp):
        module = import_module("openrlhf.models.loss").PolicyLoss(**options)
        value, *aux = module(
            logp, b.old, b.advantages, b.mask, rollout_log_probs=b.rollout
        )
        return value, dict(enumerate(aux))

    return loss


def kls(b):
    def summed(logp, **options):
        kl = import_module("openrlhf.models.utils").compute_approx_kl
        return (kl(logp, b.ref, **options) * b.mask).sum()

    unbiased = dict(log_probs_old=b.old, unbiased_gradient=True)
    calls = {f"kl/{k}": partial(summed, kl_estimator=k) for k in ("k1", "k2", "k3")}
    for k in ("k1", "k3"):
        call = partial(summed, kl_estimator=k, **unbiased)
        calls[f"kl/{k} unbiased_gradient"] = call
    return calls


def values(b):
    """The critic's loss."""

    def critic():
        module = import_module("openrlhf.models.loss").ValueLoss(0.5)
        return module(b.values, b.old_values, b.returns, b.mask)

    return {"openrlhf/value(clip .5)": critic}
