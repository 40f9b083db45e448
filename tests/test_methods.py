"""The methods, each against other systems' recorded numbers and its own formula."""

import functools
import inspect
import math
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity.comparison import batch, read

import jaxppo
from jaxppo.recipes import _methods as methods
from jaxppo.recipes import torchrl, tunix

REFERENCE = read(Path(__file__).parent / "data/reference_values.json")
OUTPUTS = REFERENCE["outputs"]
b = batch(REFERENCE["inputs"])
b.rewards = jnp.sum(jnp.where(b.mask, b.token_rewards, 0), 1)
b.off_policy = b.adv > 0.5
b.lengths = jnp.sum(b.mask, 1)
key = jax.random.key(0)
close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
GSPO = dict(clip_eps=0.2, clip_eps_high=0.2)


def policy(loss, **kwargs):
    return lambda logp, b: loss(logp, b.old, b.adv, b.mask, **kwargs)


def from_the_sampler(loss, **kwargs):
    """The sampler's log-probs as the old ones."""
    return lambda logp, b: loss(logp, b.rollout, b.adv, b.mask, **kwargs)


def corrected(loss, **kwargs):
    return lambda logp, b: loss(logp, b.old, b.adv, b.rollout, b.mask, **kwargs)


def exact_kl(logp, b):
    """A differentiated divergence: two outcomes, this token or not."""
    old = jnp.where(b.mask, b.old, -1)
    p, q = jnp.exp(logp), jnp.exp(old)
    return q * (old - logp) + (1 - q) * (jnp.log1p(-q) - jnp.log1p(-p))


def vapo(logp, b):
    values = b.values + 0.1 * logp
    losses, metrics = methods.vapo(
        logp, values, b.old, b.adv, b.returns, b.adv > 0, b.mask
    )
    return jaxppo.Mean(sum(x.value for x in losses.values()), jnp.ones(())), metrics


LOSSES = {
    "ppo": policy(methods.ppo),
    "grpo": lambda logp, b: methods.grpo(logp, b.old, b.adv, b.ref, b.mask),
    "dapo": policy(methods.dapo),
    "dr_grpo": policy(methods.dr_grpo, max_length=8),
    "gspo": policy(methods.gspo),
    "gspo_token": policy(methods.gspo_token),
    "luspo": policy(methods.luspo),
    "gmpo": policy(methods.gmpo),
    "sapo": policy(methods.sapo),
    "vapo": vapo,
    "reinforce_pp": policy(methods.reinforce_pp),
    "reinforce_pp_baseline": lambda logp, b: methods.reinforce_pp_baseline(
        logp, b.old, b.adv, b.ref, b.mask
    ),
    "ppo_penalty": lambda logp, b: methods.ppo_penalty(
        logp, exact_kl(logp, b), b.old, b.adv, b.mask
    ),
    "spo": policy(methods.spo),
    "discovered_po": policy(methods.discovered_po),
    "dppo_tv": policy(methods.dppo_tv),
    "dppo_kl": policy(methods.dppo_kl),
    "ipo": policy(methods.ipo),
    "clip_cov": policy(methods.clip_cov, key=key, fraction=0.1, low=0.05),
    "kl_cov": policy(methods.kl_cov, fraction=0.1),
    "reinforce": lambda logp, b: methods.reinforce(logp, b.adv, b.mask),
    "rloo": lambda logp, b: methods.rloo(logp, b.adv, b.mask),
    "gpg": lambda logp, b: methods.gpg(logp, b.adv, b.mask),
    "cispo": policy(methods.cispo),
    "topr": policy(methods.topr),
    "vespo": policy(methods.vespo),
    "dro": lambda logp, b: methods.dro(logp, b.ref, b.adv, b.mask),
    "kimi": policy(methods.kimi),
    "luffy": lambda logp, b: methods.luffy(logp, b.old, b.adv, b.off_policy, b.mask),
    "sft": lambda logp, b: methods.sft(logp, b.mask),
    "on_policy_distillation": lambda logp, b: methods.on_policy_distillation(
        logp, b.old, b.ref, b.mask
    ),
    "decoupled_ppo": corrected(methods.decoupled_ppo),
    "tis": corrected(methods.tis),
    "icepop": corrected(methods.icepop, low=0.8, high=1.25),
    "sequence_masked_tis": corrected(methods.sequence_masked_tis, low=0.95, high=1.05),
    "m2po": policy(methods.m2po),
    "opsm": corrected(methods.opsm, threshold=-0.1),  # two of four bad rows are out
}


def outcome(estimator, **kwargs):
    return lambda b: estimator(b.rewards, group_size=b.group_size, **kwargs)


ADVANTAGES = {
    "grpo_advantages": outcome(methods.grpo_advantages),
    "dr_grpo_advantages": outcome(methods.dr_grpo_advantages),
    "rloo_advantages": outcome(methods.rloo_advantages),
    "gpg_advantages": outcome(methods.gpg_advantages),
    "maxrl_advantages": outcome(methods.maxrl_advantages),
    "opo_advantages": lambda b: methods.opo_advantages(
        b.rewards, b.lengths, group_size=b.group_size
    ),
    "gdpo_advantages": lambda b: methods.gdpo_advantages(
        jnp.stack([b.rewards, b.rewards**2]), group_size=b.group_size
    ),
    "vapo_advantages": lambda b: methods.vapo_advantages(
        b.token_rewards, b.values, b.mask
    ),
    "reinforce_pp_advantages": lambda b: methods.reinforce_pp_advantages(
        b.token_rewards, b.mask
    ),
    "reinforce_pp_baseline_advantages": lambda b: (
        methods.reinforce_pp_baseline_advantages(
            b.rewards, b.mask, group_size=b.group_size
        )
    ),
    "remax_advantages": lambda b: methods.remax_advantages(b.rewards, b.rewards * 0.5),
    "ema_baseline": lambda b: methods.ema_baseline(jnp.zeros(()), b.rewards),
}


def test_all_methods_are_here():
    public = {name for name, x in vars(methods).items() if inspect.isfunction(x)}
    assert public == LOSSES.keys() | ADVANTAGES.keys() | {"ppo_penalty_coef"}


# --- against other systems ---

# Where a system's defaults or factors are not the paper's, the arguments say so.
RECORDED = {
    "grpo": ("trl/grpo+beta.04(plain k3)", LOSSES["grpo"]),
    "ppo": ("openrlhf/ppo/token-mean", LOSSES["ppo"]),
    "dapo": ("areal/ppo clip-higher .28", LOSSES["dapo"]),
    "dr_grpo": ("trl/dr_grpo", LOSSES["dr_grpo"]),
    "gspo": ("verl/gspo/seq-mean-token-mean", policy(methods.gspo, **GSPO)),
    "gspo_token": (
        "tunix/gspo-token/sequence-mean-token-mean",
        policy(methods.gspo_token, **GSPO),
    ),
    "luspo": ("trl/luspo(seq)", policy(methods.luspo, **GSPO)),
    "gmpo": ("trl/gmpo(eps .4)", LOSSES["gmpo"]),
    "sapo": ("verl/sapo/seq-mean-token-mean", LOSSES["sapo"]),
    "dppo_tv": (
        "skyrl/dppo binary_tv",
        from_the_sampler(methods.dppo_tv, low=0.2, high=0.2),
    ),
    "dppo_kl": (
        "skyrl/dppo binary_kl",
        from_the_sampler(methods.dppo_kl, low=0.2, high=0.2),
    ),
    "ipo": ("prime/ipo_loss_fn", from_the_sampler(methods.ipo)),
    "kl_cov": (
        "verl/kl_cov/token-mean",
        policy(methods.kl_cov, fraction=0.1, kl_coef=0.1),
    ),
    "gpg": ("verl/gpg/token-mean", LOSSES["gpg"]),
    "cispo": ("trl/cispo(eps_high=5)", LOSSES["cispo"]),
    "vespo": ("trl/vespo", LOSSES["vespo"]),
    "tis": ("nemo/ppo+tis2", LOSSES["tis"]),
    "icepop": ("nemo/ppo+icepop(.8,1.25)", LOSSES["icepop"]),
    "sequence_masked_tis": (
        "nemo/ppo+seq-mask-tis(.95,1.05)",
        LOSSES["sequence_masked_tis"],
    ),
    "opsm": ("trl/grpo+OPSM(0.)", corrected(methods.opsm, threshold=0.0)),
}


@pytest.mark.parametrize("name", RECORDED)
def test_recorded(name):
    theirs, loss = RECORDED[name]
    value, grad = jax.value_and_grad(lambda logp: loss(logp, b)[0].value)(b.logp)
    close(value, OUTPUTS[theirs]["value"])
    close(grad, OUTPUTS[theirs]["grad"])


RECORDED_ADVANTAGES = {
    "grpo_advantages": "tunix/adv/grpo",
    "rloo_advantages": "tunix/adv/rloo",
    "opo_advantages": "verl/adv/opo",
    "maxrl_advantages": "skyrl/adv/maxrl",
}


@pytest.mark.parametrize("name", RECORDED_ADVANTAGES)
def test_recorded_advantages(name):
    theirs = np.array(OUTPUTS[RECORDED_ADVANTAGES[name]]["value"])
    ours = np.asarray(ADVANTAGES[name](b))
    if theirs.ndim == 2:
        theirs, ours = np.where(b.mask, theirs, 0), np.where(b.mask, ours[:, None], 0)
    close(ours, theirs)


# --- against their formulas, written out ---

lp, old, ref, mu, A = (np.float64(x) for x in (b.logp, b.old, b.ref, b.rollout, b.adv))
m = np.asarray(b.mask)
n = m.sum(1, keepdims=True)
r = np.exp(lp - old)
S = (m * (lp - old)).sum(1, keepdims=True)


def clip(x, low, high):
    return np.minimum(x * A, np.clip(x, 1 - low, 1 + high) * A)


def mean(x):
    return np.broadcast_to(x, m.shape)[m].mean()


def rows(x):
    return ((np.where(m, x, 0)).sum(1, keepdims=True) / n).mean()


def discovered():
    positive = (r - 1) * A - 2 * np.tanh((r - 1) * A / 2)
    negative = (lp - old) * A - 0.6 * np.tanh((lp - old) * A / 0.6)
    return -r * A + np.maximum(np.where(A >= 0, positive, negative), 0)


def second_moment():
    squares = np.sort(((lp - old) ** 2)[m])
    while squares.mean() >= 0.04:
        squares = squares[:-1]
    return m & ((lp - old) ** 2 <= squares[-1])


def vapo_total():
    critic = np.float64(b.values) + 0.1 * lp - np.float64(b.returns)
    good = m & (A > 0)
    return mean(-clip(r, 0.2, 0.28)) + mean(critic**2 / 2) - 0.1 * lp[good].mean()


def luffy():
    p = np.exp(lp)
    return np.where(np.asarray(b.off_policy), -A * p / (p + 0.1), -clip(r, 0.2, 0.2))


def squared_answer(coef, other):
    answer = (m * (lp - other)).sum(1, keepdims=True)
    return (-(A * lp * m).sum(1, keepdims=True) + coef / 2 * answer**2).mean()


FORMULAS = {
    "ppo": lambda: mean(-clip(r, 0.2, 0.2)),
    "reinforce_pp": lambda: mean(-clip(r, 0.2, 0.2)),
    "reinforce_pp_baseline": lambda: mean(
        -clip(r, 0.2, 0.2) + 1e-4 * (lp - ref) ** 2 / 2
    ),
    "grpo": lambda: rows(
        -clip(r, 0.2, 0.2) + 0.04 * (np.exp(ref - lp) - 1 - (ref - lp))
    ),
    "dapo": lambda: mean(-clip(r, 0.2, 0.28)),
    "gspo": lambda: (-clip(np.exp(S / n), 3e-4, 4e-4)).mean(),
    "gspo_token": lambda: (-clip(np.exp(S / n), 3e-4, 4e-4)).mean(),
    "luspo": lambda: (-n * clip(np.exp(S / n), 2e-3, 2.5e-3)).mean(),
    "vapo": vapo_total,
    "ppo_penalty": lambda: mean(-r * A + np.float64(exact_kl(b.logp, b))),
    "spo": lambda: mean(-r * A + np.abs(A) / 0.4 * (r - 1) ** 2),
    "discovered_po": lambda: mean(discovered()),
    "dppo_tv": lambda: mean(
        -r * A * ~((np.abs(np.exp(lp) - np.exp(old)) > 0.15) & ((r - 1) * A > 0))
    ),
    "ipo": lambda: mean(
        -r * A * (np.abs(np.exp(lp) - np.exp(old)) <= 0.1) + 1e-3 * (lp - old) ** 2
    ),
    "reinforce": lambda: mean(-A * lp),
    "rloo": lambda: (-A * np.where(m, lp, 0).sum(1, keepdims=True)).mean(),
    "cispo": lambda: mean(-np.clip(r, 0, 5) * A * lp),
    "topr": lambda: (
        -A
        * np.where(A > 0, 1, np.clip(np.exp(S), 0, 1))
        * np.where(m, lp, 0).sum(1, keepdims=True)
    ).mean(),
    "dro": lambda: squared_answer(1.0, ref),
    "kimi": lambda: squared_answer(0.1, old),
    "luffy": lambda: mean(luffy()),
    "sft": lambda: mean(-lp),
    "on_policy_distillation": lambda: mean(r * (old - ref)),
    "decoupled_ppo": lambda: mean(-np.exp(old - mu) * clip(r, 0.2, 0.2)),
    "m2po": lambda: mean(np.where(second_moment(), -r * A, 0)),
    "opsm": lambda: rows(
        np.where(
            (A < 0) & ((m * (mu - lp)).sum(1, keepdims=True) / n > -0.1),
            0,
            -clip(r, 0.2, 0.2),
        )
    ),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_formula(name):
    close(LOSSES[name](b.logp, b)[0].value, FORMULAS[name]())


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("name", ["dro", "kimi"])
def test_the_square_of_a_whole_answer_has_no_bound(name, sign):
    far = SimpleNamespace(**vars(b) | dict(logp=b.old + sign * 9.0, ref=b.old))
    answer = 9.0 * sign * n
    assert np.any(np.abs(answer) > 20)
    coef = {"dro": 1.0, "kimi": 0.1}[name]
    value, grad = jax.value_and_grad(lambda x: LOSSES[name](x, far)[0].value)(far.logp)
    policy = -(A * np.float64(far.logp) * m).sum(1, keepdims=True)
    close(value, (policy + coef / 2 * answer**2).mean())
    close(grad, np.where(m, -A + coef * answer, 0) / len(m))


NO_RATIO = {"gpg", "reinforce", "rloo", "sft"}


@pytest.mark.parametrize("name", sorted(LOSSES.keys() - NO_RATIO))
def test_approx_kl_is_the_policys(name):
    """Of tokens, whatever the loss takes the ratio of: `learner` stops on it."""
    _, metrics = LOSSES[name](b.logp, b)
    x = lp - (ref if name == "dro" else old)
    keep = m & ~np.asarray(b.off_policy) if name == "luffy" else m
    close(metrics["approx_kl"].value, (np.expm1(x) - x)[keep].mean())
    close(metrics["approx_kl_k1"].value, -x[keep].mean())
    close(metrics["ratio_max"].value, np.exp(x)[keep].max())
    close(metrics["ratio_min"].value, np.exp(x)[keep].min())


def test_clip_fractions_are_of_either_width():
    adv = np.broadcast_to(b.adv, m.shape)
    for low, high in [(0.05, 0.01), (0.01, 0.05), (0.3, 0.4)]:
        loss = functools.partial(methods.dapo, clip_eps=low, clip_eps_high=high)
        metrics = jax.jit(loss)(b.logp, b.old, b.adv, b.mask)[1]
        low, high = r < 1 - low, r > 1 + high
        close(metrics["clip_fraction"].value, mean(low | high))
        close(metrics["clip_fraction_lower"].value, mean(low & (adv < 0)))
        close(metrics["clip_fraction_upper"].value, mean(high & (adv > 0)))


def test_cispo_counts_what_its_bounds_hold():
    loss = functools.partial(methods.cispo, low=0.9, high=1.1)
    metrics = jax.jit(loss)(b.logp, b.old, b.adv, b.mask)[1]
    close(metrics["clip_fraction"].value, mean((r < 0.9) | (r > 1.1)))
    close(metrics["weight"].value, mean(np.clip(r, 0.9, 1.1)))


def test_clip_fractions_are_of_what_is_clipped():
    out = (np.exp(S / n) < 0.85) | (np.exp(S / n) > 1.18)
    assert 0 < mean(out) < 1
    for loss in (methods.gspo, methods.gspo_token, methods.luspo):
        metrics = policy(loss, clip_eps=0.15, clip_eps_high=0.18)(b.logp, b)[1]
        close(metrics["clip_fraction"].value, mean(out), err_msg=loss.__name__)


def test_every_loss_is_compared():
    # clip_cov draws its tokens at random; what it may draw is tested with its mask.
    assert LOSSES.keys() == RECORDED.keys() | FORMULAS.keys() | {"clip_cov"}


def test_clip_cov_drops_a_few_of_ppos_tokens():
    plain, _ = methods.ppo(b.logp, b.old, b.adv, b.mask)
    loss, metrics = LOSSES["clip_cov"](b.logp, b)
    dropped = round(float((1 - metrics["kept_fraction"].value) * loss.count))
    assert dropped == max(int(0.1 * loss.count), 1)
    assert loss.value != plain.value


def groups(x):
    return np.float64(x).reshape(-1, b.group_size)


def test_advantages_by_their_formulas():
    rewards = groups(b.rewards)
    centred = rewards - rewards.mean(1, keepdims=True)
    close(ADVANTAGES["dr_grpo_advantages"](b), centred.ravel())
    varied = np.repeat(np.ptp(rewards, axis=1) > 0, b.group_size)
    gpg = centred.ravel() * varied.size / varied.sum()
    close(ADVANTAGES["gpg_advantages"](b), gpg)

    def scaled(x):
        x = groups(x)
        x = (x - x.mean(1, keepdims=True)) / (x.std(1, ddof=1, keepdims=True) + 1e-6)
        return x.ravel()

    gdpo = scaled(b.rewards) + scaled(b.rewards**2)
    gdpo = (gdpo - gdpo.mean()) / (gdpo.std(ddof=1) + 1e-6)
    close(ADVANTAGES["gdpo_advantages"](b), gdpo, rtol=1e-4, atol=1e-4)
    one_kind = methods.gdpo_advantages(
        jnp.stack([b.rewards, b.lengths.astype(jnp.float32)]),
        group_size=b.group_size,
        weights=jnp.array([1.0, 0.0]),
    )
    only = scaled(b.rewards)
    close(one_kind, (only - only.mean()) / only.std(ddof=1), rtol=1e-4, atol=1e-4)

    tiled = np.broadcast_to(centred.reshape(-1, 1), m.shape)
    tiled = np.where(m, (tiled - tiled[m].mean()) / tiled[m].std(), 0)
    close(ADVANTAGES["reinforce_pp_baseline_advantages"](b), tiled)
    rewards = np.where(m, b.token_rewards, 0)
    returns = np.cumsum(rewards[:, ::-1], 1)[:, ::-1]
    returns = np.where(m, (returns - returns[m].mean()) / returns[m].std(), 0)
    close(ADVANTAGES["reinforce_pp_advantages"](b), returns)


def test_vapo_returns_are_the_outcome_and_short_answers_forget():
    out = ADVANTAGES["vapo_advantages"](b)
    to_go = np.cumsum(np.where(m, b.token_rewards, 0)[:, ::-1], 1)[:, ::-1]
    close(out.returns, np.where(m, to_go, 0))
    td = jaxppo.gae(b.token_rewards, b.values, 1.0, lambda_=0.0, mask=b.mask)
    close(out.advantages, td.advantages)  # up to 20 tokens, lambda is 0
    longer = methods.vapo_advantages(b.token_rewards, b.values, b.mask, alpha=0.5)
    lambda_ = np.maximum(1 - 1 / (0.5 * n), 0)
    td = jaxppo.gae(
        b.token_rewards, b.values, 1.0, lambda_=jnp.float32(lambda_), mask=b.mask
    )
    close(longer.advantages, td.advantages)


def test_a_running_baseline():
    advantages, baseline = methods.ema_baseline(
        jnp.array(1.0), jnp.array([1.0, 3.0, 9.0]), jnp.array([True, True, False])
    )
    close(baseline, 0.95 * 1 + 0.05 * 2)
    close(advantages, np.array([1.0, 3.0, 1.05]) - 1.05)  # 0 under the mask
    _, same = methods.ema_baseline(baseline, jnp.ones(2), jnp.zeros(2, bool))
    assert same == baseline


def test_the_coefficient_of_the_penalty():
    for make in methods.ppo_penalty_coef, torchrl.klpen_coef:
        init, update, metric = make(target=0.1, init_coef=1.0)
        assert metric == "kl"
        for observed, expected in (0.16, 2.0), (0.14, 1.0), (0.07, 1.0), (0.06, 0.5):
            assert jax.jit(update)(init(), jnp.float32(observed)) == expected


# --- how they behave ---


def value_and_grad(name, b, logp):
    def loss(logp):
        value, metrics = LOSSES[name](logp, b)
        return value.value, metrics

    return jax.value_and_grad(loss, has_aux=True)(logp)


def with_padding(fill):
    dirty = SimpleNamespace(**vars(b))
    for name, x in vars(b).items():
        if np.shape(x) == m.shape and name != "mask":
            setattr(dirty, name, jnp.where(b.mask, x, fill))
    dirty.adv = jnp.where(b.mask, b.adv, fill)
    dirty.off_policy = jnp.broadcast_to(b.off_policy, m.shape)
    return dirty


@pytest.mark.parametrize("fill", [math.nan, -math.inf])
@pytest.mark.parametrize("name", LOSSES)
def test_padding_changes_nothing(name, fill):
    clean = value_and_grad(name, with_padding(0.0), jnp.where(b.mask, b.logp, 0))
    dirty = with_padding(fill)
    if name in ("vapo", "ppo_penalty"):  # whose tests compute with log-probs themselves
        dirty = value_and_grad(name, dirty, jnp.where(b.mask, b.logp, -1.0))
        clean = value_and_grad(name, with_padding(0.0), jnp.where(b.mask, b.logp, -1.0))
    else:
        dirty = value_and_grad(name, dirty, dirty.logp)
    jax.tree.map(functools.partial(close, rtol=1e-6, atol=1e-6), dirty, clean)
    assert not np.any(dirty[1][~m])


@pytest.mark.parametrize("name", LOSSES)
def test_under_transformations(name):
    plain = value_and_grad(name, b, b.logp)
    call = functools.partial(value_and_grad, name, b)
    jax.tree.map(close, jax.jit(call)(b.logp), plain)
    mapped = jax.vmap(call)(jnp.stack([b.logp, b.logp - 0.1]))
    jax.tree.map(lambda x, y: close(x[0], y), mapped, plain)


@pytest.mark.parametrize("name", LOSSES)
def test_metrics_have_no_gradient(name):
    def metrics(logp):
        return jax.tree.map(lambda x: x.sum(), LOSSES[name](logp, b)[1])

    def total(logp):
        return sum(jax.tree.leaves(metrics(logp)))

    assert not np.any(jax.grad(total)(b.logp))


@pytest.mark.parametrize("name", ADVANTAGES)
def test_advantages_under_transformations(name):
    plain = ADVANTAGES[name](b)

    def call(scale):
        scaled = SimpleNamespace(**vars(b))
        scaled.rewards, scaled.token_rewards = (
            b.rewards * scale,
            b.token_rewards * scale,
        )
        return ADVANTAGES[name](scaled)

    mapped = jax.jit(jax.vmap(call))(jnp.ones(2))
    jax.tree.map(lambda x, y: close(x[1], y), mapped, plain)


# --- recipes of systems that have no recorded value ---


def test_tunix_value_loss():
    loss, metrics = tunix.value_loss(b.values, b.old_values, b.returns, b.mask)
    v, v_old, R = (np.float64(x)[m] for x in (b.values, b.old_values, b.returns))
    held = v_old + np.clip(v - v_old, -0.2, 0.2)
    close(loss.value, np.maximum((v - R) ** 2, (held - R) ** 2).mean() / 2)
    held = np.mean((held - R) ** 2 > (v - R) ** 2)
    expected = dict(vf_clipfrac=held, vpred_mean=v.mean(), return_mean=R.mean())
    for name, value in expected.items():
        close(metrics[name].value, value)


def torchrl_inputs():
    return b.values, b.entropy, b.old, b.adv * jnp.ones_like(b.old), b.old_values


def test_torchrl_clip_ppo():
    values, entropy, old_, adv, old_values = torchrl_inputs()
    args = (b.logp, values, entropy, old_, adv, old_values, b.returns)
    loss, metrics = torchrl.clip_ppo(*args, value_clip_eps=0.2)
    v, v_old, R = (np.float64(x) for x in (b.values, b.old_values, b.returns))

    def smooth_l1(e):
        return np.where(np.abs(e) < 1, e**2 / 2, np.abs(e) - 0.5)

    held = v_old + np.clip(v - v_old, -0.2, 0.2)
    critic = np.maximum(smooth_l1(v - R), smooth_l1(held - R)).mean()
    total = -clip(r, 0.2, 0.2).mean() + critic - 0.01 * np.float64(b.entropy).mean()
    close(loss.value, total)
    expected = {
        "loss_objective": -clip(r, 0.2, 0.2).mean(),
        "loss_critic": critic,
        "clip_fraction": np.mean((r < 0.8) | (r > 1.2)),
        "value_clip_fraction": np.mean(np.abs(v - v_old) > 0.2),
        "ESS": r.sum() ** 2 / (r**2).sum() / r.size,
        "kl_approx": np.mean(old - lp),
        "max_ratio": r.max(),
        "mean_ratio": r.mean(),
        "explained_variance": 1 - np.var(R - v) / np.var(R),
    }
    for name, value in expected.items():
        close(metrics[name].value, value, err_msg=name)
    squared = functools.partial(
        torchrl.clip_ppo, error=lambda v, target: 2 * jaxppo.squared_value(v, target)
    )
    close(squared(*args)[1]["loss_critic"].value, np.mean((v - R) ** 2))


def test_torchrl_klpen_ppo():
    values, entropy, old_, adv, old_values = torchrl_inputs()
    kl = exact_kl(b.logp, b)
    loss, metrics = torchrl.klpen_ppo(
        b.logp, values, entropy, kl, old_, adv, old_values, b.returns, kl_coef=0.3
    )
    policy_loss = np.mean(-r * A + 0.3 * np.float64(kl))
    close(metrics["loss_objective"].value, policy_loss)
    rest = metrics["loss_critic"].value + metrics["loss_entropy"].value
    close(loss.value, policy_loss + rest)
    close(metrics["kl"].value, np.mean(kl))


def test_torchrl_of_language_models():
    loss, metrics = torchrl.grpo(b.logp, b.old, b.adv, b.mask)
    close(loss.value, mean(-clip(r, 0.2, 0.2)))
    held = m & ((r < 0.8) | (r > 1.2))
    close(metrics["clip_fraction"].value, held.mean())  # over all positions
    close(metrics["ESS"].value, (r[m].sum() ** 2) / (r[m] ** 2).sum() / m.sum())

    def cispo(logp):
        return torchrl.cispo(logp, b.old, b.adv, b.mask)[0].value

    value, grad = jax.value_and_grad(cispo)(b.logp)
    close(value, mean(-np.clip(r, 0.8, 1.2) * A))
    assert not np.any(grad[held]) and np.all(grad[m & ~held])  # its fault
    x = np.where(m, lp - ref, 0)
    penalty = torchrl.kl_to_ref(b.logp, b.ref, b.mask, kl_coef=0.1).value
    close(penalty, 0.1 * np.mean(np.expm1(-x) + x))
    close(
        torchrl.standardized(b.values),
        (v := np.float64(b.values) - np.mean(b.values)) / v.std(ddof=1),
    )


def test_torchrl_gae_at_ends():
    rewards, values = jnp.ones((1, 3)), jnp.full((1, 3), 0.5)
    following = jnp.array([[0.5, 2.0, 4.0]])
    done = jnp.array([[False, True, True]])
    terminated = jnp.array([[False, False, True]])
    out = torchrl.gae(
        rewards, values, following, done, terminated, gamma=0.5, lambda_=0.5
    )
    cut_short = 1 + 0.5 * 2 - 0.5  # bootstrapped; nothing comes after
    first = 1 + 0.5 * 0.5 - 0.5 + 0.25 * cut_short
    close(out.advantages, [[first, cut_short, 0.5]])
