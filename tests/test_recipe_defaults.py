"""The defaults of systems' recipes are the systems' own, as their code has them."""

import inspect
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_recipe_oracles import MASK, A
from test_recipes import RECIPES

import jaxppo

INF = math.inf
BAND = dict(clip_eps=0.2, clip_eps_high=0.2)
SAME = dict(clip_eps=0.2, clip_eps_high=None)  # one width for both sides
OFF = dict(dual_clip=INF)
SAPO = dict(temperature=1.0, temperature_negative=1.05)
VESPO = dict(k=2.0, lambda_=3.0, k_negative=3.0, lambda_negative=2.0)
K1, K3 = dict(estimator=jaxppo.kl_k1), dict(estimator=jaxppo.kl_k3)
TOKENS = dict(aggregate=jaxppo.token_mean)
SEQUENCES = dict(aggregate=jaxppo.sequence_mean)
ROWS = dict(aggregate=jaxppo.all_rows(jaxppo.sequence_mean))
GAE = dict(gamma=1.0, lambda_=1.0)
GAE_95 = dict(gamma=1.0, lambda_=0.95)
LIGER = BAND | dict(delta=INF)
TRL = SAME | dict(delta=INF)
NEMO_KL = K3 | dict(max_abs=20.0, max_value=10.0)
RHO = dict(floor=0.0, cap=2.0, low=0.0, high=INF)
REWARDS = dict(kl_coef=0.01, reward_clip=10.0)
HALF_FIVE = dict(low=0.5, high=5.0)
HALF_TWO = dict(low=0.5, high=2.0)
DPPO = dict(low=0.2, high=0.2)
REJECTED = dict(upper=5.0, lower=-INF)
OVER_TIME = dict(over_time=jaxppo.masked_mean)
CLAMPED = dict(upper=5.0, lower=0.0)
CLASSIC = dict(clip_eps=0.2, entropy_coef=0.01, value_coef=0.5)
DPO = dict(alpha=2.0, beta=0.6)
TORCHRL = dict(
    value_clip_eps=INF, value_coef=1.0, entropy_coef=0.01, error=jaxppo.huber_value
)
# What none of a system's numbers depends on: what is there, or not.
OPTIONAL = {
    *("mask", "weights", "importance_weights", "bootstrap_value", "ref_log_probs"),
    *("old_values", "penalty"),
}
DEFAULTS = {
    "areal": {
        "approx_kl": K1,
        "gae": GAE,
        "shaped_rewards": dict(bias=0.0, scale=1.0, reward_clip=20.0),
        "token_rewards": dict(kl_coef=0.1),
        "ppo": SAME | OFF,
        "sequence_ppo": SAME | OFF,
        "sapo": SAPO,
        "sequence_sapo": SAPO,
        "clamp_tokens": CLAMPED,
        "clamp_sequences_by_ratio": CLAMPED | OVER_TIME,
        "reject_tokens_by_ratio": REJECTED,
        "reject_tokens_by_kl": REJECTED | K3,
        "reject_sequences_by_ratio": REJECTED | OVER_TIME,
        "reject_sequences_by_kl": REJECTED | OVER_TIME | K3,
        "huber_value_loss": dict(clip_eps=0.5, delta=10.0),
        "value_loss": dict(clip_eps=0.5, error=jaxppo.squared_value),
    },
    "cleanrl": {"ppo": CLASSIC, "rpo_mean": dict(alpha=0.5)},
    "liger": {
        "grpo": LIGER | ROWS,
        "bnpo": LIGER,
        "dapo": LIGER,
        "dr_grpo": LIGER,
        "luspo": LIGER,
        "gspo": LIGER | ROWS,
        "cispo": dict(clip_eps_high=0.2),
        "sapo": SAPO,
        "vespo": VESPO,
        "bias_corrected_kl": dict(policy_log_ratio=jaxppo.log_ratio),
        "kl_penalty": dict(kl_coef=0.04) | TOKENS,
    },
    "nemo": {
        "gae": GAE_95 | dict(lambda_value=0.95),
        "group_advantages": dict(eps=1e-6),
        "leave_one_out_advantages": dict(eps=1e-6),
        "icepop_weights": HALF_FIVE,
        "sequence_masked_weights": dict(low=0.999, high=1.002),
        "truncated_weights": dict(cap=2.0, floor=0.0),
        "kl": NEMO_KL,
        "kl_penalty": dict(kl_coef=0.01) | TOKENS,
        "off_policy_kl": NEMO_KL,
        "score_weighted_kl": NEMO_KL,
        "cispo": BAND,
        "gspo": BAND | OFF,
        "on_policy": TOKENS,
        "ppo": BAND | OFF | TOKENS,
        "reinforce": TOKENS,
        "value_loss": dict(clip_eps=INF),
    },
    "open_instruct": {
        "dapo": dict(kl=None, clip_eps=0.2, clip_eps_high=0.272, kl_coef=0.05) | TOKENS,
        "cispo": dict(kl=None, clip_eps_high=0.272, kl_coef=0.05) | TOKENS,
        "rho_weights": RHO,
        "sequence_rho_weights": RHO,
        "divergence_rho_weights": RHO,
    },
    "openrlhf": {
        "cumulative_returns": dict(gamma=1.0),
        "dr_grpo_advantages": REWARDS,
        "flash_reinforce_advantages": REWARDS,
        "gae": GAE | dict(scale_by_std=True),
        "group_norm_advantages": REWARDS,
        "reinforce_advantages": REWARDS | dict(gamma=1.0, scale_by_std=True),
        "reinforce_baseline_advantages": REWARDS | dict(scale_by_std=True),
        "rloo_advantages": REWARDS,
        "token_rewards": REWARDS,
        "whiten": dict(scale_by_std=True),
        "clip_weights": HALF_FIVE,
        "mask_weights": HALF_FIVE,
        "sequence_mask_weights": HALF_FIVE,
        "divergence_weights": dict(divergence=jaxppo.binary_kl),
        "sequence_divergence_weights": dict(divergence=jaxppo.binary_kl),
        "adaptive_kl": dict(init_coef=0.01, horizon=10_000),
        "approx_kl": K1,
        "unbiased_gradient_kl": K1,
        "gspo": SAME | OFF,
        "ppo": SAME | OFF | TOKENS,
        "value_loss": dict(clip_eps=0.5),
    },
    "prime_rl": {
        "default": DPPO | dict(advantage_coef=1.0, kl_coef=1e-3) | TOKENS,
        "ipo": dict(threshold=0.1, advantage_coef=1.0, kl_coef=1e-3) | TOKENS,
        "ref_kl": dict(low=0.2, kl_coef=1e-3) | TOKENS,
        "ce": TOKENS,
        "length_penalised_advantages": dict(
            output_coef=0.25, input_coef=0.1, turns_coef=0.1
        ),
        "rae_advantages": dict(decay=0.95),
    },
    "purejaxrl": {"ppo": CLASSIC, "dpo": DPO},
    "rlax": {
        "vtrace": dict(lambda_=1.0, clip_rho_threshold=1.0),
        "vtrace_td_error_and_advantage": dict(
            lambda_=1.0, clip_rho_threshold=1.0, clip_pg_rho_threshold=1.0
        ),
    },
    "rllib": {
        "ppo": dict(
            clip_eps=0.3, value_clip=10.0, value_coef=1.0, entropy_coef=0.0, kl_coef=0.2
        ),
        "kl_coef_control": dict(target=0.01, init_coef=0.2),
    },
    "roll": {
        "gae": GAE_95,
        "reinforce_advantages": dict(gamma=1.0),
        "is_weights": dict(cap=1.2),
        "value_loss": dict(clip_eps=INF),
        "cispo": dict(clip_eps=0.1, clip_eps_high=0.1) | SEQUENCES,
        "cispo_unified": dict(clip_eps=0.1, clip_eps_high=0.1) | SEQUENCES,
        "kimi15": dict(tau=0.1) | SEQUENCES,
        "ppo": SAME | OFF | SEQUENCES,
        "ppo_sequence": SAME | OFF | SEQUENCES,
        "ppo_token_mean": SAME | OFF,
        "tis": dict(low=0.0, high=1.0) | SEQUENCES,
        "topr": dict(positive_coef=1.0, negative_coef=1.0) | SEQUENCES,
        "vanilla": SEQUENCES,
    },
    "sb3": {
        "ppo": CLASSIC | dict(entropy_coef=0.0, value_clip_eps=None),
        "bootstrapped": dict(discount=0.99),
    },
    "sbx": {"ppo": CLASSIC | dict(entropy_coef=0.0)},
    "skyrl": {
        "gae": GAE,
        "grpo_advantages": dict(scale_by_std=True, eps=1e-6),
        "maxrl_advantages": dict(eps=1e-6),
        "reinforce_plus_plus_advantages": dict(gamma=1.0),
        "outlier_mask": dict(low=-INF, high=INF),
        "sequence_mask": dict(low=0.99, high=1.01),
        "trajectory_mask": HALF_TWO,
        "sequence_weights": dict(cap=5.0),
        "token_weights": dict(cap=2.0),
        "clip_cov": BAND | dict(fraction=2e-4, low=1.0, high=5.0) | TOKENS,
        "kl_cov": dict(fraction=0.2, kl_coef=1.0) | TOKENS,
        "cispo": dict(clip_eps=1.0, clip_eps_high=4.0) | TOKENS,
        "dppo_kl": DPPO | TOKENS,
        "dppo_tv": DPPO | TOKENS,
        "gspo": BAND | ROWS,
        "regular": BAND | OFF | TOKENS,
        "rollout_is": BAND | TOKENS,
        "sapo": SAPO | ROWS,
        "critic": dict(clip_eps=0.2),
        "kl": K1,
        "tinker.ppo": dict(low=0.8, high=1.2),
        "tinker.cispo": dict(low=0.8, high=1.2),
    },
    "slime": {
        "gae": GAE,
        "group_advantages": dict(scale_by_std=True),
        "reinforce_plus_plus_returns": dict(gamma=1.0),
        "icepop": dict(low=0.0, high=2.0) | ROWS,
        "mis_mask": HALF_TWO | dict(level=jaxppo.log_ratio) | ROWS,
        "mis_veto": dict(threshold=1e-4) | ROWS,
        "mis_weights": dict(cap=2.0, floor=None, level=jaxppo.log_ratio) | ROWS,
        "opsm": dict(threshold=1e-4),
        "tis": dict(cap=2.0, floor=0.0) | ROWS,
        "kl": K1,
        "unbiased_kl": K3 | dict(max_value=INF),
        "cispo": SAME | ROWS,
        "gspo": SAME | OFF | ROWS,
        "ppo": SAME | OFF | ROWS,
        "value_loss": dict(clip_eps=0.2) | ROWS,
    },
    "stoix": {
        "actor": dict(clip_eps=0.2, entropy_coef=0.01),
        "critic": dict(clip_eps=0.2, value_coef=0.5),
        "dpo": DPO,
    },
    "torchrl": {
        "clip_ppo": BAND | TORCHRL,
        "klpen_ppo": TORCHRL | dict(kl_coef=1.0),
        "klpen_coef": dict(
            target=0.01, init_coef=1.0, increment=2.0, decrement=0.5, metric="kl"
        ),
        "grpo": BAND | TOKENS,
        "cispo": BAND | TOKENS,
        "gae": dict(gamma=0.99, lambda_=0.95),
    },
    "trl": {
        "batch_advantages": dict(eps=1e-4),
        "gdpo_advantages": dict(eps=1e-4),
        "group_advantages": dict(eps=1e-4),
        "normalised_rloo_advantages": dict(eps=1e-4),
        "penalised_rewards": dict(kl_coef=0.05, low=-INF, high=INF),
        "bnpo": TRL,
        "dapo": TRL,
        "dr_grpo": TRL,
        "luspo": TRL,
        "grpo": TRL | ROWS,
        "gspo": TRL | ROWS,
        "gmpo": dict(clip_eps=0.4, clip_eps_high=None),
        "rloo": SAME,
        "sequence_mask": dict(low=0.0, high=3.0),
        "sequence_truncate": dict(low=0.0, high=3.0),
        "token_mask": dict(low=0.0, high=3.0),
        "token_truncate": dict(low=0.0, high=3.0),
        "bias_corrected_kl": dict(policy_log_ratio=jaxppo.log_ratio),
        "entropy_bonus": dict(entropy_coef=0.0),
        "kl_penalty": dict(kl_coef=0.0) | ROWS,
        "cispo": dict(clip_eps_high=0.2),
        "sapo": SAPO,
        "vespo": VESPO,
    },
    "tunix": {
        "ppo": SAME | OFF,
        "grpo": SAME | OFF | dict(kl_coef=0.04, kl=jaxppo.kl_k1) | SEQUENCES,
        "gspo_token": SAME | OFF | SEQUENCES,
        "value_loss": dict(clip_eps=0.2),
        "kl": dict(max_value=INF),
        "mse_kl": dict(max_value=INF),
        "low_var_kl": dict(max_value=INF),
        "gae": GAE_95,
    },
    "verl": {
        "gae": dict(discount=1.0, lambda_=1.0),
        "gdpo": dict(eps=1e-6),
        "gpg_advantages": dict(f_norm=1.0),
        "grpo": dict(eps=1e-6),
        "grpo_passk": dict(eps=1e-6),
        "optimal_token_baseline": dict(turn_aligned=False, zero_tail=True),
        "tir_optimal_token_baseline": dict(zero_tail=True),
        "reinforce_plus_plus": dict(discount=1.0),
        "cispo": SAME | TOKENS,
        "clip_cov": SAME | dict(fraction=2e-4, low=1.0, high=5.0) | TOKENS,
        "dppo_kl": dict(low=0.2, high=None, cap=3.0) | TOKENS,
        "dppo_tv": dict(low=0.2, high=None, cap=3.0) | TOKENS,
        "dro": TOKENS,
        "geo_mean": SAME,
        "gpg": TOKENS,
        "gspo": SAME | SEQUENCES,
        "kl_cov": dict(fraction=2e-4, kl_coef=0.1) | TOKENS,
        "reinforce": dict(aggregate=jaxppo.sequence_sum),
        "sapo": SAPO,
        "vanilla": SAME | dict(dual_clip=3.0) | TOKENS,
        "kl_control": dict(init_coef=0.001, target=0.1, horizon=10_000),
        "rejection": dict(low=None),
        "sequence_band_weights": HALF_TWO,
        "token_band_weights": HALF_FIVE,
        "sequence_weights": dict(cap=2.0),
        "token_weights": dict(cap=2.0),
        "value_loss": dict(clip_eps=0.5) | TOKENS,
    },
}
TABLE = {f"{s}.{k}": x for s, recipes in DEFAULTS.items() for k, x in recipes.items()}


def defaults(recipe):
    parameters = inspect.signature(recipe).parameters.values()
    found = {p.name: p.default for p in parameters if p.default is not p.empty}
    return {k: x for k, x in found.items() if k not in OPTIONAL}


WITH_DEFAULTS = [k for k, x in RECIPES.items() if "." in k and defaults(x)]


def alike(got, expected):
    """The same number or function, or an aggregator that does the same."""
    if not callable(expected) or got is expected:
        return got is expected or got == expected
    x, mask = jnp.asarray(A["x"], jnp.float32), jnp.asarray(MASK)
    try:
        means = got(x, mask), expected(x, mask)
    except TypeError:
        return False
    return all(isinstance(m, jaxppo.Mean) for m in means) and means[0] == means[1]


@pytest.mark.parametrize("name", WITH_DEFAULTS)
def test_defaults_are_the_systems(name):
    found, expected = defaults(RECIPES[name]), TABLE[name]
    assert found.keys() == expected.keys()
    for k, x in expected.items():
        assert alike(found[k], x), (k, found[k], x)


def test_the_table_names_recipes():
    assert TABLE.keys() == set(WITH_DEFAULTS)


B = SimpleNamespace(**{k: jnp.asarray(x, jnp.float32) for k, x in A.items()})
WIDTHS = {"clip_eps": "clip_eps_high", "low": "high"}
ONE_WIDTH = {
    name: (low, high, x[low])
    for name, x in TABLE.items()
    for low, high in WIDTHS.items()
    if low in x and x.get(high, 0) is None
}


@pytest.mark.parametrize("name", sorted(ONE_WIDTH))
def test_one_width_is_that_of_both_sides(name):
    low, high, default = ONE_WIDTH[name]
    more = {"trl.dr_grpo": dict(max_length=7)}.get(name, {})
    more |= {"verl.clip_cov": dict(key=jax.random.key(0))}.get(name, {})
    adv = B.adv[:, :1] if name in ("trl.gmpo", "trl.rloo") else B.adv

    @jax.jit
    def values(logp):
        def value(**widths):
            recipe = RECIPES[name]
            args = logp, B.old, adv, jnp.asarray(MASK)
            return recipe(*args, **widths, **more)[0].value

        return (
            (value(), value(**{low: default, high: default})),
            (value(**{low: 0.02}), value(**{low: 0.02, high: 0.02})),
            (value(**{low: 0.02}), value(**{low: 0.02, high: default})),
        )

    by_default, alone, apart = jax.tree.map(np.asarray, values(B.logp))
    np.testing.assert_allclose(*by_default, rtol=1e-6)
    np.testing.assert_allclose(*alone, rtol=1e-6)
    assert not np.isclose(*apart, rtol=1e-4)


METHODS = {
    "cispo": dict(low=0.0, high=5.0),
    "clip_cov": dict(clip_eps=0.2, fraction=0.0002, low=1.0, high=5.0),
    "dapo": dict(clip_eps=0.2, clip_eps_high=0.28),
    "decoupled_ppo": dict(clip_eps=0.2, cap=INF),
    "discovered_po": dict(alpha=2.0, beta=0.6),
    "dppo_kl": dict(low=0.05, high=0.05),
    "dppo_tv": dict(low=0.15, high=0.15),
    "dr_grpo": dict(clip_eps=0.2),
    "dro": dict(kl_coef=1.0),
    "ema_baseline": dict(decay=0.95),
    "gmpo": dict(clip_eps=0.4),
    "grpo": dict(clip_eps=0.2, kl_coef=0.04),
    "gspo": dict(clip_eps=0.0003, clip_eps_high=0.0004),
    "gspo_token": dict(clip_eps=0.0003, clip_eps_high=0.0004),
    "icepop": dict(clip_eps=0.2, low=0.5, high=5.0),
    "ipo": dict(threshold=0.1, kl_coef=0.001),
    "kimi": dict(kl_coef=0.1),
    "kl_cov": dict(fraction=0.002, kl_coef=1.0),
    "luffy": dict(clip_eps=0.2, gamma=0.1),
    "luspo": dict(clip_eps=0.002, clip_eps_high=0.0025),
    "m2po": dict(threshold=0.04),
    "maxrl_advantages": dict(eps=1e-06),
    "on_policy_distillation": dict(kl_coef=1.0),
    "opsm": dict(clip_eps=0.2),
    "ppo": dict(clip_eps=0.2),
    "ppo_penalty": dict(kl_coef=1.0),
    "ppo_penalty_coef": dict(target=0.01, init_coef=1.0),
    "reinforce_pp": dict(clip_eps=0.2),
    "reinforce_pp_advantages": dict(gamma=1.0),
    "reinforce_pp_baseline": dict(clip_eps=0.2, kl_coef=0.0001),
    "sapo": dict(temperature=1.0, temperature_negative=1.05),
    "sequence_masked_tis": dict(clip_eps=0.2, low=0.999, high=1.002),
    "spo": dict(clip_eps=0.2),
    "tis": dict(clip_eps=0.2, cap=2.0),
    "topr": dict(cap=1.0),
    "vapo": dict(clip_eps=0.2, clip_eps_high=0.28, value_coef=1.0, nll_coef=0.1),
    "vapo_advantages": dict(alpha=0.05),
    "vespo": dict(k=2.0, lambda_=3.0, k_negative=3.0, lambda_negative=2.0),
}


def test_numbers_of_the_methods():
    """The papers', or what a docstring says instead."""
    numbers = {
        name: {k: x for k, x in defaults(f).items() if type(x) in (int, float)}
        for name, f in RECIPES.items()
        if "." not in name
    }
    assert {name: x for name, x in numbers.items() if x} == METHODS
