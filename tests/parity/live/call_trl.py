"""TRL 1.16.0: `_compute_loss` of its trainers, without a trainer."""

from collections import defaultdict
from functools import partial
from importlib import import_module
from types import SimpleNamespace

# As GRPOConfig has them; the rest of the trainer's state is in `trainer`.
ARGUMENTS = dict(
    delta=None,
    use_bias_correction_kl=True,
    sapo_temperature_neg=1.05,
    sapo_temperature_pos=1.0,
    vespo_k_pos=2.0,
    vespo_lambda_pos=3.0,
    vespo_k_neg=3.0,
    vespo_lambda_neg=2.0,
    steps_per_generation=1,
)
STATE = dict(
    loss_type="grpo",
    importance_sampling_level="token",
    epsilon_low=0.2,
    epsilon_high=0.2,
    beta=0.0,
    top_entropy_quantile=1.0,
    off_policy_mask_threshold=None,
    use_vllm=False,
    vllm_importance_sampling_correction=False,
    aux_loss_enabled=False,
    use_adaptive_entropy=False,
    _entropy_bonus_enabled=False,
    entropy_coef=0.0,
    current_gradient_accumulation_steps=1,
)


def grpo():
    return import_module("trl.trainer.grpo_trainer").GRPOTrainer


def rloo():
    return import_module("trl.trainer.rloo_trainer").RLOOTrainer


def gmpo():
    return import_module("trl.experimental.gmpo.gmpo_trainer").GMPOTrainer


def one_process():
    """An accelerator's collectives, alone."""
    same = lambda x, **options: x
    return SimpleNamespace(
        num_processes=1,
        sync_gradients=True,
        **dict.fromkeys(["gather", "reduce", "pad_across_processes"], same),
    )


def trainer(b, logp, options):
    """All that `_compute_loss` reads of its trainer; the model gives `logp`."""
    arguments = {k: options.get(k, default) for k, default in ARGUMENTS.items()}
    state = {k: options.get(k, default) for k, default in STATE.items()}
    this = SimpleNamespace(
        **state,
        args=SimpleNamespace(**arguments),
        accelerator=one_process(),
        model=SimpleNamespace(training=True),
        max_completion_length=b.time,
        get_off_policy_mask=grpo().get_off_policy_mask,
        get_gamma_weights=grpo().get_gamma_weights,
        _metrics={"train": defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *a, **k: (logp, b.entropy, None),
    )
    this.get_high_entropy_mask = partial(grpo().get_high_entropy_mask, this)
    return this


def batch(b):
    """The trainer's own names; prompts of one token, all tokens alike."""
    torch = import_module("torch")
    prompt = torch.ones(b.rows, 1, dtype=torch.long)
    return dict(
        prompt_ids=prompt,
        prompt_mask=prompt,
        completion_ids=torch.zeros(b.rows, b.time, dtype=torch.long),
        completion_mask=b.mask,
        num_items_in_batch=b.mask.sum(),
        advantages=b.adv,
        old_per_token_logps=b.old,
        old_logps=(b.old * b.mask).sum(1),
        ref_per_token_logps=b.ref,
        sampling_per_token_logps=b.rollout,
    )


def of(b, cls=grpo, more=None, **options):
    """The loss of log pi, with what the trainer logs."""
    assert options.keys() <= ARGUMENTS.keys() | STATE.keys()

    def loss(logp):
        this = trainer(b, logp, options)
        value = cls()._compute_loss(this, None, batch(b) | (more or {}))
        return value, {name: x for name, (x,) in this._metrics["train"].items()}

    return loss


def losses(b):
    """Of the three trainers."""
    kinds = ["grpo", "dapo", "bnpo", "dr_grpo", "luspo", "sapo", "vespo"]
    calls = {kind: of(b, loss_type=kind) for kind in kinds}
    calls |= {
        "cispo(eps_high=5)": of(b, loss_type="cispo", epsilon_high=5.0),
        "cispo(eps_high=1.2)": of(b, loss_type="cispo", epsilon_high=1.2),
        "rloo(seq ratio)": of(b, rloo),
        "gmpo(eps .4)": of(b, gmpo, epsilon_low=0.4, epsilon_high=0.4),
    }
    calls |= variants(b)
    return {f"trl/{name}": call for name, call in calls.items()}


def variants(b):
    """What GRPOTrainer adds to a loss."""
    sequence = dict(importance_sampling_level="sequence")
    bonus = dict(_entropy_bonus_enabled=True, entropy_coef=0.01)
    vllm = dict(use_vllm=True, vllm_importance_sampling_correction=True)
    truncated = ((b.old - b.rollout) * b.mask).exp().clamp(max=3.0)
    return {
        "gspo(seq,grpo)": of(b, **sequence),
        "luspo(seq)": of(b, loss_type="luspo", **sequence),
        "grpo+delta1.3": of(b, delta=1.3),
        "dapo+delta3 (== dual clip c=3)": of(b, loss_type="dapo", delta=3.0),
        "grpo+beta.04(bias-corrected kl)": of(b, beta=0.04),
        "grpo+beta.04(plain k3)": of(b, beta=0.04, use_bias_correction_kl=False),
        "grpo+OPSM(0.)": of(b, off_policy_mask_threshold=0.0),
        "grpo+top_entropy.5": of(b, top_entropy_quantile=0.5),
        "grpo+entropy_coef.01": of(b, **bonus),
        "grpo+token TIS": of(b, more={"importance_sampling_ratio": truncated}, **vllm),
    }


def values(b):
    """Two of GRPOTrainer's static methods, one number a row."""

    def off_policy_mask():
        keep = grpo().get_off_policy_mask(
            b.adv[:, None], b.logp, b.rollout, b.mask, 0.0
        )
        return keep[:, 0]

    def vespo_phi():
        phi = grpo().get_gamma_weights(b.adv[:, None], b.logp - b.old, b.mask, None)
        return phi[:, 0]

    return {"trl/off_policy_mask(0.)": off_policy_mask, "trl/vespo phi": vespo_phi}
