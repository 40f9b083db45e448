"""Liger-Kernel 0.8.5: the loss inside its fused linear GRPO, on log-probabilities."""

from importlib import import_module

KINDS = ["grpo", "dapo", "bnpo", "dr_grpo", "luspo", "sapo", "vespo"]
VARIANTS = {
    "cispo(eps_high=5)": dict(loss_type="cispo", epsilon_high=5.0),
    "gspo(seq,grpo)": dict(importance_sampling_level="sequence"),
    "luspo(seq)": dict(loss_type="luspo", importance_sampling_level="sequence"),
    "grpo+delta1.3": dict(delta=1.3),
    "grpo+beta.04": dict(beta=0.04),
    "grpo+beta.04 bias-corr": dict(beta=0.04, use_bias_correction_kl=True),
}


def losses(b):
    """Metrics are named by their place."""
    options = {kind: dict(loss_type=kind) for kind in KINDS} | VARIANTS
    return {f"liger/{name}": of(b, **chosen) for name, chosen in options.items()}


def of(b, **options):
    def loss(logp):
        grpo = import_module("liger_kernel.chunked_loss.grpo_loss")
        fused = grpo.LigerFusedLinearGRPOFunction
        value, aux = fused.ppo_loss_fn(**arguments(b, logp) | options)
        return value, dict(enumerate(aux))

    return loss


def arguments(b, logp):
    return dict(
        per_token_logps=logp,
        old_per_token_logps=b.old,
        ref_per_token_logps=b.ref,
        advantages=b.adv,
        attention_mask=b.mask,
        full_attention_mask=b.mask,
        loss_type="grpo",
        beta=0.0,
        max_completion_length=b.time,
    )


def values(b):
    """None."""
    return {}
