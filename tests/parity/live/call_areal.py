"""AReaL 1.0.4: `utils.functional`, `utils.data` and its PPO actor's M2PO mask."""

from functools import partial
from importlib import import_module

# Of the decoupled loss, whose behaviour policy is the rollout's.
REJECTION = {
    "(behav=rollout)": dict(action="mask", metric="ratio", upper=1.2),
    "clamp": dict(action="clamp", metric="ratio", upper=1.1),
    "seq-ratio mask": dict(
        level="sequence", action="mask", metric="ratio", agg="mean", upper=1.05
    ),
    "kl_k3 token mask": dict(action="mask", metric="kl_k3", upper=0.02),
}


def functional():
    return import_module("areal.utils.functional.functional")


def losses(b):
    """Policy losses, and estimators of the KL divergence summed over tokens."""
    calls = {
        "ppo": counted(b),
        "ppo c_clip=3": counted(b, c_clip=3.0),
        "ppo clip-higher .28": counted(b, eps_clip_higher=0.28),
        "gspo(sequence)": counted(b, importance_sampling_level="sequence"),
        "sapo": partial(sapo, b),
        **{f"decoupled {name}": decoupled(b, **of) for name, of in REJECTION.items()},
        **{f"kl/{kind}": partial(kl, b, kind) for kind in ("k1", "k2", "k3")},
    }
    return {f"areal/{name}": call for name, call in calls.items()}


def actor(b, logp, behaviour, **options):
    """The advantages are a copy: one path writes to them."""
    return functional().ppo_actor_loss_fn(
        *(logp, b.old, behaviour, b.advantages.clone(), 0.2, b.mask.bool()), **options
    )


def counted(b, **options):
    """With the numbers of clipped tokens."""

    def loss(logp):
        value, stat = actor(b, logp, b.old, **options)
        clipped, dual = stat["clip_mask"].sum(), stat["dual_clip_mask"].sum()
        return value, {"clip": clipped, "dual": dual}

    return loss


def decoupled(b, level="token", **options):
    def loss(logp):
        config = import_module("areal.api.cli_args").RejectionSamplingConfig
        rejection = config(level=level, **options)
        return actor(b, logp, b.rollout, rejection_sampling=rejection)[0]

    return loss


def sapo(b, logp):
    return functional().sapo_loss_fn(
        logp, b.old, b.advantages.clone(), 1.0, 1.05, b.mask.bool()
    )[0]


def kl(b, kind, logp):
    estimator = import_module("areal.utils.data").KLEstimator(kind)
    return (estimator(logp, b.ref) * b.mask).sum()


def values(b):
    """The critic's losses and a mask."""
    return {
        "areal/critic mse(clip .5)": partial(critic, b, "mse"),
        "areal/critic huber": partial(critic, b, "huber"),
        "areal/m2po mask(.01)": partial(m2po, b),
    }


def critic(b, kind):
    return functional().ppo_critic_loss_fn(
        b.values, b.old_values, b.returns, 0.5, b.mask.bool(), kind
    )[0]


def m2po(b):
    mask = import_module("areal.trainer.ppo.actor")._apply_m2po_masking
    return mask(b.rollout, b.old, b.mask.bool(), 0.01)
