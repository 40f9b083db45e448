"""PPO's whole loss in control: six systems' conventions, against their own formulas.

The formulas are written out again in NumPy, from each system's source, as it computes
a minibatch: how advantages are normalised, whether the squared error is halved, what
clips the value. The systems disagree on the same numbers, and by how much is known.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import literally

import jaxppo
from jaxppo.recipes import cleanrl, purejaxrl, rllib, sb3, sbx, stoix

RNG = np.random.default_rng(0)
N = 512
OLD = -RNG.gamma(1.0, 1.0, N) - 0.1
LOG_PROBS = np.minimum(OLD + RNG.normal(0, 0.3, N), -1e-3)
ADVANTAGES = RNG.normal(0.3, 1.7, N)
OLD_VALUES = RNG.normal(0, 1, N)
VALUES = OLD_VALUES + RNG.normal(0, 0.3, N)
RETURNS = OLD_VALUES + RNG.normal(0, 3.0, N)
ENTROPY = RNG.uniform(0.1, 1.5, N)
KL = RNG.uniform(0.0, 0.1, N)

RATIO = np.exp(LOG_PROBS - OLD)


def normalised(ddof, eps=1e-8):
    return (ADVANTAGES - ADVANTAGES.mean()) / (ADVANTAGES.std(ddof=ddof) + eps)


def surrogate(advantages, eps):
    clipped = np.clip(RATIO, 1 - eps, 1 + eps)
    return np.mean(np.maximum(-advantages * RATIO, -advantages * clipped))


def squared(v):
    return np.mean((v - RETURNS) ** 2)


def held(eps):
    return OLD_VALUES + np.clip(VALUES - OLD_VALUES, -eps, eps)


def larger(eps):
    both = (VALUES - RETURNS) ** 2, (held(eps) - RETURNS) ** 2
    return 0.5 * np.mean(np.maximum(*both))


H = np.mean(ENTROPY)
CRITIC = dict(values=VALUES, returns=RETURNS, entropy=ENTROPY)
CLIPPED = CRITIC | dict(old_values=OLD_VALUES)
WIDTHS = dict(clip_eps=0.15, entropy_coef=0.02, value_coef=0.7)
# system: its recipe, the inputs it takes, and its total
TOTALS = {
    "purejaxrl": (
        purejaxrl.ppo,
        CLIPPED | WIDTHS,
        surrogate(normalised(0), 0.15) + 0.7 * larger(0.15) - 0.02 * H,
    ),
    "cleanrl": (
        cleanrl.ppo,
        CLIPPED | WIDTHS,
        surrogate(normalised(1), 0.15) + 0.7 * larger(0.15) - 0.02 * H,
    ),
    "sb3": (
        sb3.ppo,
        CRITIC | WIDTHS,
        surrogate(normalised(1), 0.15) + 0.7 * squared(VALUES) - 0.02 * H,
    ),
    "sb3, value clip": (
        sb3.ppo,
        CLIPPED | WIDTHS | dict(value_clip_eps=0.25),
        surrogate(normalised(1), 0.15) + 0.7 * squared(held(0.25)) - 0.02 * H,
    ),
    "sbx": (
        sbx.ppo,
        CRITIC | WIDTHS,
        surrogate(normalised(0), 0.15) + 0.7 * squared(VALUES) - 0.02 * H,
    ),
    "rllib": (
        rllib.ppo,
        CRITIC | WIDTHS | dict(kl=KL, kl_coef=0.4, value_clip=6.0),
        surrogate(ADVANTAGES, 0.15)
        + 0.7 * np.mean(np.clip((VALUES - RETURNS) ** 2, 0, 6.0))
        - 0.02 * H
        + 0.4 * np.mean(KL),
    ),
}


def arrays(inputs):
    return {k: jnp.asarray(x) if np.ndim(x) else x for k, x in inputs.items()}


def loss(recipe, inputs, log_probs=LOG_PROBS):
    given = [jnp.asarray(x) for x in (log_probs, OLD, ADVANTAGES)]
    return recipe(*given, **arrays(inputs))


@pytest.mark.parametrize("system", TOTALS)
def test_total(system, x64):
    recipe, inputs, expected = TOTALS[system]
    mean, _ = loss(recipe, inputs)
    np.testing.assert_allclose(mean.value, expected, rtol=1e-12)


@pytest.mark.parametrize("system", TOTALS)
def test_gradients(system, x64):
    """By the value at two more points, and by the log-prob at two."""
    recipe, inputs, _ = TOTALS[system]
    inputs = arrays(inputs)

    def total(log_probs, values):
        given = log_probs, jnp.asarray(OLD), jnp.asarray(ADVANTAGES)
        return recipe(*given, **inputs | {"values": values})[0].value

    at = jnp.asarray(LOG_PROBS), jnp.asarray(VALUES)
    grads = jax.grad(total, (0, 1))(*at)
    for k, grad in enumerate(grads):
        direction = jnp.asarray(RNG.normal(size=N))
        move = lambda h, k=k, d=direction: total(
            *(x + h * d if i == k else x for i, x in enumerate(at))
        )
        slope = (move(1e-7) - move(-1e-7)) / 2e-7
        np.testing.assert_allclose(jnp.sum(grad * direction), slope, rtol=1e-4)


def test_who_agrees_and_who_does_not(x64):
    """As recorded: half or not, a maximum or not, the ddof: six totals of one batch."""
    totals = {name: float(loss(*TOTALS[name][:2])[0].value) for name in TOTALS}
    for a in totals:
        for b in totals:
            assert a == b or abs(totals[a] - totals[b]) > 1e-5, (a, b)
    actor, _ = stoix.actor(
        *(jnp.asarray(x) for x in (LOG_PROBS, OLD, normalised(0))),
        entropy=jnp.asarray(ENTROPY),
        clip_eps=0.15,
        entropy_coef=0.02,
    )
    critic, _ = stoix.critic(
        *(jnp.asarray(x) for x in (VALUES, OLD_VALUES, RETURNS)),
        clip_eps=0.15,
        value_coef=0.7,
    )
    together = float(actor.value + critic.value)  # Stoix, on purejaxrl's advantages
    np.testing.assert_allclose(together, totals["purejaxrl"], rtol=1e-12)


def test_metrics_under_the_systems_names(x64):
    x = LOG_PROBS - OLD
    metrics = {k: m.value for k, m in loss(*TOTALS["cleanrl"][:2])[1].items()}
    expected = {
        "losses/policy_loss": surrogate(normalised(1), 0.15),
        "losses/value_loss": larger(0.15),
        "losses/entropy": H,
        "losses/old_approx_kl": np.mean(-x),
        "losses/approx_kl": np.mean(np.exp(x) - 1 - x),
        "losses/clipfrac": np.mean(np.abs(RATIO - 1) > 0.15),
    }
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-12, err_msg=name)
    metrics = {k: m.value for k, m in loss(*TOTALS["sb3"][:2])[1].items()}
    np.testing.assert_allclose(metrics["train/value_loss"], squared(VALUES))
    np.testing.assert_allclose(metrics["train/entropy_loss"], -H)
    np.testing.assert_allclose(metrics["train/approx_kl"], np.mean(np.exp(x) - 1 - x))
    metrics = {k: m.value for k, m in loss(*TOTALS["sbx"][:2])[1].items()}
    np.testing.assert_allclose(metrics["train/value_loss"], squared(VALUES))
    metrics = {k: m.value for k, m in loss(*TOTALS["rllib"][:2])[1].items()}
    np.testing.assert_allclose(metrics["vf_loss_unclipped"], squared(VALUES))
    np.testing.assert_allclose(metrics["mean_kl_loss"], np.mean(KL))


def drift(advantages):
    r, x = RATIO, LOG_PROBS - OLD
    up = (r - 1) * advantages
    down = x * advantages
    return np.where(
        advantages >= 0,
        np.maximum(up - 2.0 * np.tanh(up / 2.0), 0),
        np.maximum(down - 0.6 * np.tanh(down / 0.6), 0),
    )


def test_discovered_policy_optimisation(x64):
    given = [jnp.asarray(x) for x in (LOG_PROBS, OLD)]
    expected = -np.mean(RATIO * ADVANTAGES - drift(ADVANTAGES))
    mean, _ = stoix.dpo(*given, jnp.asarray(ADVANTAGES))
    np.testing.assert_allclose(mean.value, expected, rtol=1e-12)
    a = normalised(0)
    mean, _ = purejaxrl.dpo(*given, jnp.asarray(ADVANTAGES))
    np.testing.assert_allclose(mean.value, -np.mean(RATIO * a - drift(a)), rtol=1e-12)


def test_penalty_and_normalisation(x64):
    given = [jnp.asarray(x) for x in (LOG_PROBS, KL, OLD, ADVANTAGES)]
    mean, metrics = stoix.ppo_penalty(*given, kl_coef=3.0)
    expected = -np.mean(RATIO * ADVANTAGES - 3.0 * np.mean(KL))
    np.testing.assert_allclose(mean.value, expected, rtol=1e-12)
    np.testing.assert_allclose(metrics["kl_divergence"].value, np.mean(KL))
    centred = ADVANTAGES - ADVANTAGES.mean()
    got = stoix.standardised(jnp.asarray(ADVANTAGES))
    np.testing.assert_allclose(got, centred / np.sqrt(ADVANTAGES.var() + 1e-5))
    np.testing.assert_allclose(got, jax.nn.standardize(jnp.asarray(ADVANTAGES)))
    got = rllib.normalised(jnp.asarray(ADVANTAGES))
    np.testing.assert_allclose(got, centred / max(1e-4, ADVANTAGES.std()))
    constant = rllib.normalised(jnp.full(4, 0.3))
    np.testing.assert_array_equal(constant, 0)


def test_rllibs_coefficient(x64):
    control = rllib.kl_coef_control(target=0.01, init_coef=0.2)
    coef = control.init()
    for kl, expected in [(0.03, 0.3), (0.004, 0.15), (0.012, 0.15), (np.nan, 0.15)]:
        coef = control.update(coef, jnp.asarray(kl, jnp.float32))
        np.testing.assert_allclose(coef, expected, rtol=1e-6)


def test_a_reward_at_a_time_limit_is_a_bootstrap(x64):
    """SB3's trick on the rewards gives the advantages that `next_values` gives."""
    rewards, values, final = (jnp.asarray(RNG.normal(size=(3, 8))) for _ in range(3))
    truncated = jnp.zeros((3, 8), bool).at[1, 4].set(True).at[2, 7].set(True)
    shifted = jnp.concatenate([values[:, 1:], final[:, -1:]], 1)
    expected = jaxppo.gae(
        rewards,
        values,
        0.9,
        lambda_=jnp.where(truncated, 0.0, 0.8),
        next_values=jnp.where(truncated, final, shifted),
    )
    shaped = sb3.bootstrapped(rewards, final, truncated, discount=0.9)
    got = jaxppo.gae(
        shaped,
        values,
        jnp.where(truncated, 0.0, 0.9),
        lambda_=0.8,
        bootstrap_value=final[:, -1],
    )
    np.testing.assert_allclose(got.advantages, expected.advantages, rtol=1e-12)


def test_robust_policy_optimisation():
    mean = jnp.zeros((2000, 2))
    moved = cleanrl.rpo_mean(jax.random.key(0), mean, alpha=0.3)
    assert np.all(np.abs(moved) <= 0.3)
    np.testing.assert_allclose(np.std(moved), 0.3 / np.sqrt(3), rtol=0.03)
    assert np.array_equal(moved, cleanrl.rpo_mean(jax.random.key(0), mean, alpha=0.3))


@pytest.mark.parametrize("system", TOTALS)
def test_padding_has_no_influence(system):
    recipe, inputs, _ = TOTALS[system]
    per_step = {k: x for k, x in inputs.items() if np.ndim(x)}
    rest = {k: x for k, x in inputs.items() if k not in per_step}
    per_step |= dict(log_probs=LOG_PROBS, old_log_probs=OLD, advantages=ADVANTAGES)
    per_step = {k: np.float32(x) for k, x in per_step.items()}
    mask = jnp.arange(N) % 3 > 0

    def total(arrays):
        return recipe(**arrays, mask=mask, **rest)[0].value

    both = literally(jax.value_and_grad(total))
    clean = both(per_step)
    for garbage in (np.nan, np.inf, -np.inf):
        bad = {k: np.where(mask, x, np.float32(garbage)) for k, x in per_step.items()}
        got = both(bad)
        jax.tree.map(np.testing.assert_array_equal, got, clean)
    kept = {k: jnp.asarray(x[np.asarray(mask)]) for k, x in per_step.items()}
    alone = recipe(**kept, **rest)[0].value
    np.testing.assert_allclose(clean[0], alone, rtol=1e-5)
