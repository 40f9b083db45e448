"""Recipes of systems no value was recorded of, against the systems' own formulas.

Loops over tokens in float64 NumPy, written from the system's code; gradients by central
differences. The mask is ragged, with holes and an empty row; bounds are asymmetric,
none is a default, and each binds somewhere.
"""

import functools
import math
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxppo
from jaxppo.recipes import (
    areal,
    nemo,
    open_instruct,
    openrlhf,
    prime_rl,
    rlax,
    roll,
    skyrl,
    slime,
    trl,
    tunix,
    verl,
)

RNG = np.random.default_rng(7)
N, T, GROUP = 9, 7, 3
MASK = np.array(
    [
        [1, 1, 1, 1, 1, 1, 1],
        [1, 1, 0, 1, 1, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [0, 1, 1, 1, 0, 1, 1],
        [0, 0, 0, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0],
        [1, 0, 0, 1, 1, 1, 0],
        [1, 1, 0, 0, 0, 0, 0],
    ]
).astype(bool)


def drawn():
    normal = functools.partial(RNG.normal, size=(N, T))
    old = -RNG.gamma(1.0, 0.8, (N, T)) - 0.4
    rows = RNG.normal(0, 0.25, (N, 1))  # whole answers may have moved, too
    values = normal(0, 1)
    rewards = np.array([1.0, 0.0, 2.5, -0.5, 1.5, 14.0, 0.3, 2.0, -1.2])
    several = RNG.normal(1, 1, (N, 2))
    several[2, 0] = several[4] = np.nan
    missing = rewards.copy()
    missing[4] = np.nan
    return dict(
        logp=np.minimum(old + normal(0, 0.3) + rows, -0.01),
        old=old,
        rollout=np.minimum(old + normal(0, 0.4) + RNG.normal(0, 0.3, (N, 1)), -0.01),
        ref=np.minimum(old + normal(0, 0.6), -0.01),
        adv=normal(0.2, 1),
        scores=np.array([1.0, 0.0, 0.5, -1.0, 2.0, 0.0, 1.0, -0.5, 0.0])[:, None],
        weights=RNG.uniform(0.3, 1.7, (N, T)),
        values=values,
        old_values=values + normal(0, 0.4),
        returns=values + normal(0, 1),
        rewards=rewards,
        missing=missing,  # a reward that no function could give
        several=several,
        positive=np.array([1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0]),
        token_rewards=normal(0, 1),
        kl=normal(0, 0.5),
        x=normal(0.3, 2),
        lengths=np.array([5.0, 9.0, 3.0, 4.0, 0.0, 8.0, 6.0, 2.0, 7.0]),
        turns=np.array([1.0, 4.0, 2.0, 1.0, 3.0, 1.0, 0.0, 0.0, 0.0]),
    )


A = drawn()
B = SimpleNamespace(**A)
IDS = np.array([0, 0, 0, 0, 1, 1, 2, 3, 3])  # one group has one member
TOKENS = [(i, t) for i in range(N) for t in range(T) if MASK[i, t]]
ROWS = [[(j, t) for j, t in TOKENS if j == i] for i in range(N)]
DRIFT = B.old - B.rollout


# --- sums and means, by loops ---


def at(f):
    """A function of a place: as it is, of an array, or of an array of one column."""
    if callable(f):
        return f
    f = np.broadcast_to(f, (N, T))
    return lambda i, t: f[i, t]


def total(f):
    return sum(at(f)(i, t) for i, t in TOKENS)


def mean(f):
    return total(f) / len(TOKENS)


def row_means(f):
    f = at(f)
    return [sum(f(i, t) for i, t in row) / max(len(row), 1) for row in ROWS]


def row_sums(f):
    f = at(f)
    return np.array([sum(f(i, t) for i, t in row) for row in ROWS], np.float64)


def by_row(f):
    """The mean over all rows of their means."""
    return sum(row_means(f)) / N


def by_some_row(f):
    """The mean over rows that have a token."""
    return sum(row_means(f)) / sum(bool(row) for row in ROWS)


def of_rows(f):
    """The mean of each row at each of its places."""
    return np.repeat(np.array(row_means(f))[:, None], T, 1)


def fill(f, under=np.nan):
    """An array of what f gives at tokens; NaN where anything may stand."""
    out = np.full((N, T), under)
    for i, t in TOKENS:
        out[i, t] = at(f)(i, t)
    return out


def k3(x):
    return math.exp(-x) - 1 + x


def white(x, *, ddof=1, scale=lambda var: math.sqrt(var + 1e-8)):
    """Whitened over the tokens, 0 elsewhere."""
    centre = mean(x)
    variance = total((x - centre) ** 2) / (len(TOKENS) - ddof)
    return fill((x - centre) / scale(variance), 0.0)


def clipped(r, a, low, high, dual=math.inf):
    loss = max(-r * a, -min(max(r, 1 - low), 1 + high) * a)
    return min(loss, -dual * a) if a < 0 else loss


def binds(r, a, low, high):
    return float(-min(max(r, 1 - low), 1 + high) * a > -r * a)


def last_tokens(rewards):
    """Each sample's reward at its last token."""
    out = np.zeros((N, T))
    for i, row in enumerate(ROWS):
        if row:
            out[row[-1]] = rewards[i]
    return out


def to_come(x, gamma):
    """The discounted sum along the array, holes included."""
    out, later = np.zeros((N, T)), np.zeros(N)
    for t in reversed(range(T)):
        later = x[:, t] + gamma * later
        out[:, t] = later
    return out


def gae_of_places(rewards, values, gamma, lam):
    """GAE over all places of the array."""
    out, later, following = np.zeros((N, T)), np.zeros(N), np.zeros(N)
    for t in reversed(range(T)):
        delta = rewards[:, t] + gamma * following - values[:, t]
        later, following = delta + gamma * lam * later, values[:, t]
        out[:, t] = later
    return out


def gae_of_tokens(rewards, values, gamma, lam, end=None):
    """GAE that carries over what is masked."""
    out = np.full((N, T), np.nan)
    lam = np.broadcast_to(lam, (N,))
    for i, row in enumerate(ROWS):
        later, following = 0.0, 0.0 if end is None else end[i]
        for j, t in reversed(row):
            delta = rewards[j, t] + gamma * following - values[j, t]
            later, following = delta + gamma * lam[i] * later, values[j, t]
            out[j, t] = later
    return out


def squared_errors(v, eps):
    """(v - R)^2, and that of v held near v_old."""
    held = np.clip(v, B.old_values - eps, B.old_values + eps)
    return (v - B.returns) ** 2, (held - B.returns) ** 2


# --- groups ---


THREES = np.arange(N) // GROUP


def grouped(f, ids=THREES, x=B.rewards):
    """f of the members of each group, in their places."""
    out = np.zeros(N)
    for g in set(ids.tolist()):
        out[ids == g] = f(x[ids == g])
    return out


def centred(r):
    return r - r.mean()


def standard(eps, ddof=1):
    def scores(r):
        return (r - r.mean()) / (r.std(ddof=ddof) + eps) if len(r) > 1 else 0 * r

    return scores


def of_others(f):
    """f of each member and the others of its group."""

    def scores(r):
        if len(r) == 1:
            return 0 * r
        return np.array([f(r[i], np.delete(r, i)) for i in range(len(r))])

    return scores


rloo = of_others(lambda mine, others: mine - others.mean())


def nemo_score(mine, others):
    std = others.std(ddof=1) if len(others) > 1 else 0.0
    return (mine - others.mean()) / (std + 3e-3 if std > 0 else 1.0)


def skipping_nan(f):
    """f of the members that have a reward; 0 for the others."""

    def scores(r):
        out, known = np.zeros(len(r)), ~np.isnan(r)
        if known.sum() > 1:
            out[known] = f(r[known])
        return out

    return scores


# --- losses: x is what is differentiated ---


def roll_logged(per_token, x, mean=by_some_row, drift=None):
    """A loss of ROLL with what each logs; x is the log-ratio it uses."""
    drift = x if drift is None else drift
    ratios = [math.exp(x[i, t]) for i, t in TOKENS]
    return {
        "": mean(per_token),
        "actor/pg_loss": mean(per_token),
        "actor/ratio_mean": by_some_row(np.exp(x)),
        "actor/ratio_max": max(ratios),
        "actor/ratio_min": min(ratios),
        "actor/approxkl": mean(drift**2 / 2),
        "actor/policykl": mean(drift),
    }


def roll_outside(name, r, low, high, rows):
    return {
        f"actor/{name}_lower_clipfrac": mean(r < low),
        f"actor/{name}_upper_clipfrac": mean(r > high),
        f"actor/{name}_total_clipfrac": mean((r < low) | (r > high)),
        f"actor/{name}_clipped_ratio_mean": rows(np.clip(r, low, high)),
    }


def roll_ppo_sequence(logp):
    drift = logp - B.old
    x = of_rows(drift)

    def loss(i, t):
        return B.weights[i, t] * clipped(math.exp(x[i, t]), B.adv[i, t], 0.3, 0.4, 1.25)

    r = np.exp(x)
    return roll_logged(loss, x, by_some_row, drift) | {
        "actor/ppo_ratio_low_clipfrac": mean(r < 0.7),
        "actor/ppo_ratio_high_clipfrac": mean(r > 1.4),
        "actor/ppo_ratio_clipfrac": mean((r < 0.7) | (r > 1.4)),
        "actor/clipfrac": by_some_row(
            lambda i, t: binds(r[i, t], B.adv[i, t], 0.3, 0.4)
        ),
    }


def roll_vanilla(logp):
    return roll_logged(-B.adv * logp * B.weights, logp - B.old, mean)


def roll_tis(logp):
    r = np.exp(B.logp - B.old)
    loss = -np.clip(r, 0.8, 1.1) * B.adv * logp * B.weights
    outside = roll_outside("tis", r, 0.8, 1.1, by_some_row)
    return roll_logged(loss, logp - B.old) | outside


def roll_topr(logp):
    good = np.broadcast_to(B.scores > 0, (N, T))
    r = np.exp(B.logp - B.old)
    rising = np.where(good, -B.adv * logp, 0)
    falling = np.where(good, 0, -np.minimum(r, 1) * B.adv * logp)
    weighted = {"positive": 0.7 * rising, "negative": 1.3 * falling}
    loss = (weighted["positive"] + weighted["negative"]) * B.weights
    return roll_logged(loss, logp - B.old) | {
        "actor/topr_positive_loss": by_some_row(rising),
        "actor/topr_negative_loss": by_some_row(falling),
        "actor/topr_weighted_positive_loss": by_some_row(weighted["positive"]),
        "actor/topr_weighted_negative_loss": by_some_row(weighted["negative"]),
        "actor/topr_negative_total_clipfrac": mean(~good & (r > 1)),
    }


def roll_cispo(logp):
    r = np.exp(B.logp - B.old)
    loss = -np.clip(r, 0.85, 1.2) * B.adv * logp * B.weights
    outside = roll_outside("cispo", r, 0.85, 1.2, by_row)
    return roll_logged(loss, logp - B.old) | outside


def roll_cispo_unified(logp):
    r = np.exp(B.logp - B.old)
    risen, fallen = (B.adv > 0) & (r > 1.2), (B.adv < 0) & (r < 0.85)
    loss = -np.clip(r, 0.85, 1.2) * B.adv * logp * ~(risen | fallen)
    return (
        roll_logged(loss, logp - B.old)
        | roll_outside("cispo", r, 0.85, 1.2, by_row)
        | {
            "actor/cispo_masked_positive_tokens": mean(risen),
            "actor/cispo_masked_negative_tokens": mean(fallen),
            "actor/cispo_kept_tokens": mean(~(risen | fallen)),
        }
    )


def roll_kimi15(logp):
    x = logp - B.old
    loss = (-B.adv * logp + 0.3 / 2 * x**2) * B.weights
    return roll_logged(loss, x) | {
        "actor/kimi15_kl_reg_magnitude": mean(0.3 / 2 * x**2),
        "actor/kimi15_log_ratio_mean": mean(x),
        "actor/kimi15_log_ratio_abs_mean": mean(abs(x)),
    }


def roll_value_loss(v):
    plain, held = squared_errors(v, 0.3)
    loss = by_row(np.maximum(plain, held)) / 2
    return {
        "": loss,
        "critic/loss": loss,
        "critic/value": by_row(B.old_values),
        "critic/vpred": by_row(v),
        "critic/clipfrac": by_row(held > plain),
        "critic/error": by_row(plain),
    }


def slime_gspo(logp):
    x = of_rows(logp - B.old)

    def loss(i, t):
        return B.weights[i, t] * clipped(math.exp(x[i, t]), B.adv[i, t], 0.3, 0.4, 1.25)

    def clip(i, t):
        return binds(math.exp(x[i, t]), B.adv[i, t], 0.3, 0.4)

    return {
        "": by_row(loss),
        "pg_loss": by_row(loss),
        "pg_clipfrac": by_row(clip),
        "ppo_kl": by_row(-x),
    }


def slime_value_loss(v):
    plain, held = squared_errors(v, 0.25)
    loss = by_row(np.maximum(plain, held))
    moved = abs(v - B.old_values) > 0.25
    return {"": loss, "value_loss": loss, "value_clipfrac": by_row(moved)}


def slime_unbiased_kl(logp):
    r, x = np.exp(logp - B.old), logp - B.ref
    return fill(lambda i, t: min(r[i, t] * k3(x[i, t]), 0.3), 0.0)


def slime_row_mean(x):
    return by_row(x)


def nemo_off_policy_kl(logp):
    x, w = logp - B.ref, np.exp(logp - B.rollout)
    w = np.where(abs(x) <= 0.6, w, np.exp(B.logp - B.rollout))
    x = np.clip(x, -0.6, 0.6)
    return fill(lambda i, t: min(w[i, t] * k3(x[i, t]), 0.4), 0.0)


def nemo_positive_nll(logp):
    right = [(i, t) for i, t in TOKENS if B.rewards[i] > 0]
    loss = sum(-logp[i, t] for i, t in right) / len(right)
    return {"": loss, "positive_nll_loss": loss}


def nemo_value_loss(v):
    plain, held = squared_errors(v, 0.3)
    loss = mean(np.maximum(plain, held)) / 2
    here = [v[i, t] for i, t in TOKENS]
    return {
        "": loss,
        "loss": loss,
        "vf_clipfrac": mean(held > plain),
        "returns_mean": mean(B.returns),
        "values_mean": mean(v),
        "values_max": max(here),
        "values_min": min(here),
        "returns_sq_mean": mean(B.returns**2),
        "residual_sq_mean": mean(plain),
    }


def skyrl_importance_sampling(logp):
    r = np.exp(logp - B.old)
    return {"": total(-r * B.adv), "importance_ratio": mean(r)}


def skyrl_cross_entropy(logp):
    return {"": total(-logp), "clip_ratio": 0.0}


def prime_ref_kl(logp):
    x = logp - B.rollout
    gone = np.exp(logp) - np.exp(B.rollout) < -0.04
    pull = B.ref - B.logp
    loss = -np.where(gone, 0, pull * np.exp(x)) + 0.3 * x**2
    mismatch = np.exp(x) - x - 1
    lost = [mismatch[i, t] for i, t in TOKENS if gone[i, t]]
    kept = [mismatch[i, t] for i, t in TOKENS if not gone[i, t]]
    return {
        "": mean(loss),
        "ref_kl": mean(pull),
        "ref_kl/is_masked": mean(gone),
        "ref_kl/masked_mismatch_kl": sum(lost) / len(lost),
        "ref_kl/unmasked_mismatch_kl": sum(kept) / len(kept),
    }


def prime_ce(logp):
    return {"": total(-logp), "nll": mean(-logp)}


def areal_sequence_sapo(logp):
    x = of_rows(logp - B.old)
    adv = of_rows(B.adv)
    r = np.exp(x)
    up = 4 / 0.8 / (1 + np.exp(-0.8 * (r - 1)))
    down = 4 / 1.3 / (1 + np.exp(-1.3 * (r - 1)))
    gate = np.where(adv > 0, up, down)
    return {
        "": mean(-gate * adv),
        "actor_loss": mean(-gate * adv),
        "importance_weight": mean(r),
        "approx_kl": mean(logp - B.old),
        "clip_ratio": 0.0,
        "dual_clip_ratio": 0.0,
        "sapo_soft_gate": mean(gate),
        "sapo_scaled_gate_pos": mean(up),
        "sapo_scaled_gate_neg": mean(down),
    }


def trl_gspo(logp):
    x = of_rows(logp - B.old)
    low, high = (np.exp(x) < 0.85) & (B.adv < 0), (np.exp(x) > 1.2) & (B.adv > 0)

    def loss(i, t):
        return B.weights[i, t] * clipped(math.exp(x[i, t]), B.adv[i, t], 0.15, 0.2)

    return {
        "": by_row(loss),
        "clip_ratio/low_mean": by_row(low),
        "clip_ratio/low_min": min(row_means(low)),
        "clip_ratio/high_mean": by_row(high),
        "clip_ratio/high_max": max(row_means(high)),
        "clip_ratio/region_mean": by_row(low | high),
    }


class Loss(NamedTuple):
    """A recipe of p, what is differentiated, and its formula of the same."""

    recipe: object
    formula: object
    by: str = "logp"


def policy(recipe, **options):
    return lambda p, b: recipe(
        p, b.old, b.adv, b.mask, **{k: v(b) for k, v in options.items()}
    )


def constant(x):
    return lambda b: x


def weighted(b):
    return b.weights


def critic(recipe, eps):
    return lambda p, b: recipe(p, b.old_values, b.returns, b.mask, clip_eps=eps)


CLIPS = dict(
    weights=weighted,
    clip_eps=constant(0.3),
    clip_eps_high=constant(0.4),
    dual_clip=constant(1.25),
)
BAND = dict(clip_eps=constant(0.15), clip_eps_high=constant(0.2))
LOSSES = {
    "areal.sequence_sapo": Loss(
        policy(
            areal.sequence_sapo,
            temperature=constant(0.8),
            temperature_negative=constant(1.3),
        ),
        areal_sequence_sapo,
    ),
    "nemo.off_policy_kl": Loss(
        lambda p, b: nemo.off_policy_kl(
            p, b.rollout, b.ref, b.mask, max_abs=0.6, max_value=0.4
        ),
        nemo_off_policy_kl,
    ),
    "nemo.positive_nll": Loss(
        lambda p, b: nemo.positive_nll(p, b.rewards, b.mask), nemo_positive_nll
    ),
    "nemo.value_loss": Loss(critic(nemo.value_loss, 0.3), nemo_value_loss, "values"),
    "prime_rl.ref_kl": Loss(
        lambda p, b: prime_rl.ref_kl(
            p, b.rollout, b.ref, b.mask, low=0.04, kl_coef=0.3
        ),
        prime_ref_kl,
    ),
    "prime_rl.ce": Loss(
        lambda p, b: prime_rl.ce(p, b.mask, aggregate=jaxppo.token_sum), prime_ce
    ),
    "roll.ppo_sequence": Loss(policy(roll.ppo_sequence, **CLIPS), roll_ppo_sequence),
    "roll.vanilla": Loss(
        policy(roll.vanilla, weights=weighted, aggregate=constant(jaxppo.token_mean)),
        roll_vanilla,
    ),
    "roll.tis": Loss(
        policy(roll.tis, weights=weighted, low=constant(0.8), high=constant(1.1)),
        roll_tis,
    ),
    "roll.topr": Loss(
        lambda p, b: roll.topr(
            p,
            b.old,
            b.adv,
            b.scores,
            b.mask,
            weights=b.weights,
            positive_coef=0.7,
            negative_coef=1.3,
        ),
        roll_topr,
    ),
    "roll.cispo": Loss(policy(roll.cispo, weights=weighted, **BAND), roll_cispo),
    "roll.cispo_unified": Loss(policy(roll.cispo_unified, **BAND), roll_cispo_unified),
    "roll.kimi15": Loss(
        policy(roll.kimi15, weights=weighted, tau=constant(0.3)), roll_kimi15
    ),
    "roll.value_loss": Loss(critic(roll.value_loss, 0.3), roll_value_loss, "values"),
    "roll.unmasked_token_mean": Loss(
        lambda p, b: roll.unmasked_token_mean(p, b.mask),
        lambda x: np.sum(x) / len(TOKENS),
        "x",
    ),
    "skyrl.importance_sampling": Loss(
        policy(skyrl.importance_sampling), skyrl_importance_sampling
    ),
    "skyrl.cross_entropy": Loss(
        lambda p, b: skyrl.cross_entropy(p, b.mask), skyrl_cross_entropy
    ),
    "skyrl.tinker.cross_entropy": Loss(
        lambda p, b: skyrl.tinker.cross_entropy(p, b.mask), lambda logp: total(-logp)
    ),
    "slime.gspo": Loss(policy(slime.gspo, **CLIPS), slime_gspo),
    "slime.value_loss": Loss(
        critic(slime.value_loss, 0.25), slime_value_loss, "values"
    ),
    "slime.unbiased_kl": Loss(
        lambda p, b: slime.unbiased_kl(p, b.old, b.ref, b.mask, max_value=0.3),
        slime_unbiased_kl,
    ),
    "trl.gspo": Loss(policy(trl.gspo, weights=weighted, **BAND), trl_gspo),
    "slime.row_mean": Loss(lambda p, b: slime.row_mean(p, b.mask), slime_row_mean, "x"),
}


# --- corrections for the sampler ---


def ratios(x=DRIFT):
    return np.exp(x)


def inside(r, low, high):
    return (r >= low) & (r <= high)


def of_sequences(kind, x=DRIFT):
    """The sum or the mean of a row at each of its places."""
    return np.repeat(row_sums(x)[:, None], T, 1) if kind == "sum" else of_rows(x)


def of_runs(x):
    """The mean of each run of tokens at each of them."""
    out = np.zeros((N, T))
    for i in range(N):
        t = 0
        while t < T:
            end = t
            while end < T and MASK[i, end]:
                end += 1
            out[i, t:end] = x[i, t:end].mean() if end > t else 0
            t = end + 1
    return out


def areal_metrics(weights, drift, filtered):
    kept = [(i, t) for i, t in TOKENS if weights[i, t] > 0]
    average = lambda f: sum(f[i, t] for i, t in kept) / len(kept)
    return {
        "": weights,
        "behave_imp_weight": average(weights),
        "behave_approx_kl": average(drift),
        "rs_filtered_fraction": mean(filtered),
    }


def areal_reject_sequences_by_kl():
    statistic = of_sequences("sum", DRIFT**2 / 2)
    keep = inside(statistic, 0.05, 0.5)
    weights = fill(np.where(keep, ratios(), 0), 0.0)
    return areal_metrics(weights, DRIFT, ~keep)


def areal_clamp_sequences_by_ratio():
    geometric = np.exp(of_sequences("mean"))
    whole = np.exp(of_sequences("sum"))
    held = np.where(inside(whole, 0.8, 1.3), geometric, np.clip(geometric, 0.8, 1.3))
    return areal_metrics(fill(held, 0.0), DRIFT, held != geometric)


def areal_loglinear():
    out = B.rollout.copy()
    for i in range(N):
        for t in range(T):
            age = 5 - VERSIONS[i, t]
            if VERSIONS[i, t] >= 0 and age > 0:
                alpha = (age - 1) / age
                out[i, t] += alpha * (B.logp[i, t] - B.rollout[i, t])
    return out


VERSIONS = RNG.integers(-1, 6, (N, T))


def rho_logged(rho, low, high, dropped_low, dropped_high):
    """open-instruct's weights, clamped in [0.7, 1.2]."""
    held = np.clip(rho, 0.7, 1.2)
    weights = fill(np.where(dropped_low | dropped_high, 0, held), 0.0)
    return {
        "": weights,
        "val/rho_drop_frac": mean(dropped_low | dropped_high),
        "val/rho_drop_low_frac": mean(dropped_low),
        "val/rho_drop_high_frac": mean(dropped_high),
        "val/rho_weight": mean(weights),
        "val/rho_clipfrac": mean(held != rho),
    }


FAR = np.zeros((N, T))
FAR[0, 0] = 15.0  # held at 10


def oi_sequence_rho():
    rho = np.exp(of_rows(np.clip(DRIFT, -10, 10)))
    return rho_logged(rho, 0.6, 1.3, rho < 0.6, rho > 1.3)


def oi_divergence_rho():
    rho = np.exp(np.clip(DRIFT, -10, 10))
    far = of_rows(abs(rho - 1))
    away = np.sign(DRIFT) * B.adv > 0
    return rho_logged(rho, 0.3, 0.5, (far < 0.3) & away, (far > 0.5) & away)


def skyrl_rejected(name, over, under):
    return {
        f"{name}_masked_ratio": np.mean(over | under),
        f"{name}_over_high_ratio": np.mean(over),
        f"{name}_under_low_ratio": np.mean(under),
    }


def skyrl_of_sequences(name, ratio, low, high):
    over, under = ratio > high, ratio < low
    keep = np.repeat(~(over | under)[:, None], T, 1) & MASK
    return {"": keep} | skyrl_rejected(name, over, under)


def skyrl_outlier():
    over = np.array([any(ratios()[i, t] > 1.7 for i, t in row) for row in ROWS])
    under = np.array([any(ratios()[i, t] < 0.6 for i, t in row) for row in ROWS])
    keep = np.repeat(~(over | under)[:, None], T, 1) & MASK
    return {"": keep} | skyrl_rejected("outlier_seq", over, under)


def skyrl_ratio_metrics():
    here = [ratios()[i, t] for i, t in TOKENS]
    return {
        "is_ratio_mean": mean(ratios()),
        "is_ratio_max": max(here),
        "is_ratio_min": min(here),
    }


def slime_tis(weights):
    r = ratios()
    return {
        "": fill(weights),
        "tis": by_row(r),
        "tis_clipfrac": by_row(weights != r),
        "tis_abs": by_row(abs(r - 1)),
    }


def slime_opsm():
    kl = of_rows(B.old - B.logp)
    drop = (B.adv < 0) & (kl > 0.01)
    dropped = sum(row_means(drop))
    return {"": fill(~drop, 0.0) > 0, "opsm_clipfrac": dropped}


def slime_mis_weights():
    r = np.exp(of_sequences("sum"))
    return {
        "": fill(np.clip(r, 0.7, 1.4), 0.0),
        "tis_weight_before_bound": by_row(r),
        "tis_weight_after_bound": by_row(np.clip(r, 0.7, 1.4)),
    }


def slime_mis_mask():
    r = np.exp(of_sequences("mean"))
    return {
        "": inside(r, 0.85, 1.2) & MASK,
        "rs_mask_fraction_low": by_row(r < 0.85),
        "rs_mask_fraction_high": by_row(r > 1.2),
    }


def slime_mis_veto():
    below = (DRIFT < math.log(0.6)) & MASK
    vetoed = np.repeat(below.any(1)[:, None], T, 1)
    return {
        "": MASK & ~vetoed,
        "rs_catastrophic_token_fraction": by_row(below),
        "rs_catastrophic_seq_fraction": by_row(vetoed),
    }


UNKNOWN = B.rollout.copy()
UNKNOWN[0, 1] = UNKNOWN[3, 5] = np.nan  # the sampler has not told


def trl_drift():
    return np.where(np.isnan(UNKNOWN), 0, B.old - UNKNOWN)


def trl_logged(weights, counted):
    known = [abs(DRIFT[i, t]) for i, t in TOKENS if not np.isnan(UNKNOWN[i, t])]
    return {
        "": weights,
        "sampling/sampling_logp_difference/mean": sum(known) / len(known),
        "sampling/sampling_logp_difference/max": max(known),
        "sampling/importance_sampling_ratio/min": min(counted),
        "sampling/importance_sampling_ratio/mean": sum(counted) / len(counted),
        "sampling/importance_sampling_ratio/max": max(counted),
    }


def trl_token_mask():
    r = np.exp(trl_drift())
    weights = fill(np.where(inside(r, 0.7, 1.4), r, 0))
    return trl_logged(weights, [weights[i, t] for i, t in TOKENS])


def trl_sequence(bound):
    weights = bound(np.exp(row_sums(trl_drift())))[:, None]
    return trl_logged(weights, weights[:, 0].tolist())


def trl_sequence_truncate():
    return trl_sequence(lambda r: np.clip(r, 0.7, 1.4))


def trl_sequence_mask():
    return trl_sequence(lambda r: np.where(inside(r, *WIDE.values()), r, 0))


def roll_is_weights():
    r = np.exp(of_rows(DRIFT))
    return {
        "": fill(np.minimum(r, 1.1)),
        "actor/is_weight_clipfrac": mean(r > 1.1),
    }


def roll_train_infer_metrics():
    gap = np.exp(B.old) - np.exp(B.rollout)
    levels = {
        "token": (ratios(), gap),
        "geometric": (np.exp(of_rows(DRIFT)), of_rows(gap)),
        "sequence": (np.exp(of_sequences("sum")), of_sequences("sum", gap)),
        "segment": (np.exp(of_runs(DRIFT)), of_runs(gap)),
    }
    names = {f"ratio_{k}": r for k, (r, _) in levels.items()}
    names |= {f"diff_{k}": d for k, (_, d) in levels.items()}
    return {f"actor/train_infer_{k}_mean": by_some_row(x) for k, x in names.items()}


def verl_normalised(weights, factor):
    return {
        "": fill(weights / factor, 0.0),
        "rollout_corr/rollout_is_batch_norm_factor": factor,
    }


# --- advantages ---


def openrlhf_rewards(rewards):
    """Held in [-3, 3] at the last token, less 0.3 of the KL."""
    return fill(last_tokens(np.clip(rewards, -3, 3)) - 0.3 * B.kl, 0.0)


def openrlhf_white(x, std=True):
    scale = lambda var: math.sqrt(max(var, 1e-8)) if std else 1.0
    return white(x, ddof=0, scale=scale)


def of_group(f, gamma=1.0):
    return to_come(openrlhf_rewards(grouped(f)), gamma)


def openrlhf_gae():
    rewards, values = (fill(x, 0.0) for x in (B.token_rewards, B.values))
    out = gae_of_places(rewards, values, 0.97, 0.9)
    return {"advantages": openrlhf_white(out, std=False), "returns": out + values}


def stopped():
    out = B.rewards.copy()
    out[TRUNCATED] = -0.4
    return out


def scaled():
    out = B.rewards.copy()
    out[TRUNCATED] *= 0.3
    return out


TRUNCATED = np.arange(N) % 3 == 0


def nemo_normalised(x):
    return white(x, ddof=0, scale=lambda var: math.sqrt(max(var, 1e-8)))


def nemo_gae():
    lam = [1 - 1 / max(0.4 * len(row), 1) for row in ROWS]
    rewards, values = SMALL * B.token_rewards, SMALL * B.values
    advantages = gae_of_tokens(rewards, values, 0.97, lam)
    returns = gae_of_tokens(rewards, values, 0.97, 0.8) + values
    return {"advantages": white(advantages), "returns": fill(returns)}


def nemo_gdpo():
    parts = [grouped(of_others(nemo_default), IDS, x) for x in RNG_PARTS]
    out = 0.7 * parts[0] + 1.2 * parts[1]
    return (out - out.mean()) / out.std(ddof=1)


def nemo_default(mine, others):
    std = others.std(ddof=1) if len(others) > 1 else 0.0
    return (mine - others.mean()) / (std + 1e-6 if std > 0 else 1.0)


RNG_PARTS = np.stack([B.rewards, B.lengths[::-1] / 3])


def trl_gdpo():
    coefs = (0.7, 1.2)
    known = ~np.isnan(B.several)
    out = sum(
        c * grouped(skipping_nan(standard(2e-3)), x=B.several[:, k])
        for k, c in enumerate(coefs)
    )
    scored = known.any(1)
    x = out[scored]
    return np.where(scored, (out - x.mean()) / (x.std(ddof=1) + 2e-3), 0)


def trl_summed():
    out = np.nansum(B.several * [0.7, 1.2], 1)
    return np.where(np.isnan(B.several).all(1), np.nan, out)


def trl_batch():
    known = B.missing[~np.isnan(B.missing)]
    out = grouped(skipping_nan(centred), x=B.missing)
    return out / (known.std(ddof=1) + 2e-3)


def trl_normalised_rloo():
    alone = B.missing.copy()
    alone[3] = np.nan  # of the second group, one is left
    out = grouped(skipping_nan(rloo), x=alone)
    company = THREES != 1
    x = out[company]
    return np.where(company, (out - x.mean()) / (x.std(ddof=1) + 2e-3), 0)


def areal_normalised(level):
    """(A - the group's mean) / (std + 1e-5), of the group's or of the batch's."""
    out, sizes = np.zeros((N, T)), {}
    for g in range(N // GROUP):
        tokens = [(i, t) for i, t in TOKENS if i // GROUP == g]
        values = np.array([SMALL * B.adv[i, t] for i, t in tokens])
        for i, t in tokens:
            out[i, t] = SMALL * B.adv[i, t] - values.mean()
            sizes[i, t] = values.std(ddof=1)
    if level == "group":
        return fill(lambda i, t: out[i, t] / (sizes[i, t] + 1e-5), 0.0)
    batch = math.sqrt(total(out**2) / (len(TOKENS) - 1))
    return fill(out / (batch + 1e-5), 0.0)


def areal_shaped():
    return np.clip((B.rewards + 0.5) * 1.7, -3, 3)


def areal_gae():
    out = gae_of_tokens(B.token_rewards, B.values, 0.97, 0.9, B.rewards)
    return {"advantages": fill(out), "returns": fill(out + B.values)}


def prime_length_penalised():
    out = np.zeros(N)
    for g in (slice(0, 3), slice(3, 6), slice(6, 9)):
        r = B.rewards[g]
        share = lambda x: x[g] / max(x[g].max(), 1)
        cost = 0.4 * share(B.lengths) + 0.2 * share(B.lengths[::-1])
        cost = cost + 0.3 * share(B.turns)
        shaped = r - r.mean() * cost
        out[g] = shaped - shaped.mean()
    return out


def prime_max_rl(r):
    return (r - r.mean()) / r.mean() if r.mean() > 0 else 0 * r


def prime_rae():
    baselines, out = [0.3, -0.2], []
    for agent, reward in zip(AGENTS, B.rewards, strict=True):
        out.append(reward - baselines[agent])
        baselines[agent] = 0.8 * baselines[agent] + 0.2 * reward
    return {"0": np.array(out), "1": np.array(baselines)}


AGENTS = np.array([0, 1, 1, 0, 1, 0, 0, 1, 0])


def slime_rewards():
    return fill(last_tokens(B.rewards) - B.kl, 0.0)


def keeping(x):
    """GRPO's; a group of one has a mean of 0 and a deviation of 1."""
    alone = lambda r: standard(2e-3)(r) if len(r) > 1 else r / (1 + 2e-3)
    return grouped(alone, IDS, x)


def verl_gdpo():
    each = [B.token_rewards.sum(1), B.kl.sum(1)]
    scores = [SMALL * keeping(x) for x in each]
    return white(np.repeat((0.7 * scores[0] + 1.2 * scores[1])[:, None], T, 1))


def steps_of(gain, target, init):
    """A coefficient led by KLs above, near, below and far below its target."""
    out = [init]
    for kl in KLS:
        error = min(max(kl / target - 1, -0.2), 0.2)
        out.append(out[-1] * (1 + gain * error))
    return np.array(out)


KLS = (0.5, 0.055, 0.04, 0.0)


def led(controller):
    out = [controller.init()]
    for kl in KLS:
        out.append(controller.update(out[-1], jnp.asarray(kl, jnp.float32)))
    return jnp.stack(out)


def vtrace():
    """Of the first row: errors, advantages, estimates of q."""
    v, r, x = B.values[0], B.token_rewards[0], DRIFT[0]
    following, errors, later = np.append(v[1:], 0.3), np.zeros(T), 0.0
    for t in reversed(range(T)):
        rho = math.exp(x[t])
        delta = min(rho, 1.3) * (r[t] + DISCOUNTS[t] * following[t] - v[t])
        later = delta + DISCOUNTS[t] * 0.8 * min(rho, 1) * later
        errors[t] = later
    q, targets = np.zeros(T), errors + v
    for t in range(T):
        then = 0.8 * targets[t + 1] + 0.2 * v[t + 1] if t + 1 < T else 0.3
        q[t] = r[t] + DISCOUNTS[t] * then
    rho = np.minimum(np.exp(x), 1.1)
    return {"0": errors, "1": rho * (q - v), "2": q}


DISCOUNTS = np.array([0.9, 0.9, 0.0, 0.9, 0.9, 0.9, 0.9])


def live_vtrace(b):
    following = jnp.append(b.values[0, 1:], jnp.asarray(0.3, b.values.dtype))
    return rlax.vtrace_td_error_and_advantage(
        b.values[0],
        following,
        b.token_rewards[0],
        jnp.asarray(DISCOUNTS),
        b.old[0] - b.rollout[0],
        lambda_=0.8,
        clip_rho_threshold=1.3,
        clip_pg_rho_threshold=1.1,
    )


def samplers(recipe, **options):
    return lambda b: recipe(b.old, b.rollout, b.mask, **options)


def shaped(recipe, **options):
    options = dict(kl_coef=0.3, reward_clip=3.0) | options
    return lambda b: recipe(b.rewards, b.kl, b.mask, **options)


def bounds_unnamed(out):
    """Without the shares of what is held, whose names depend on the mode."""
    weights, metrics = out
    return weights, {k: x for k, x in metrics.items() if "fraction" not in k}


GROUPS = dict(group_size=GROUP)
BY_ID = dict(group_ids=jnp.asarray(IDS))
BOUNDS = dict(low=0.7, high=1.4)
WIDE = dict(low=0.12, high=4.0)
COEFS = np.array([0.7, 1.2])
SMALL, SMALLER = 1e-4, 3e-6  # where the eps of a whitening shows
WHITE = 1e-5  # whitenings differ by an eps, or by how their sums are rounded
VALUES = {
    "areal.reject_sequences_by_kl": (
        samplers(
            areal.reject_sequences_by_kl,
            upper=0.5,
            lower=0.05,
            estimator=jaxppo.kl_k2,
            over_time=jaxppo.masked_sum,
        ),
        areal_reject_sequences_by_kl,
    ),
    "areal.clamp_sequences_by_ratio": (
        samplers(
            areal.clamp_sequences_by_ratio,
            upper=1.3,
            lower=0.8,
            over_time=jaxppo.masked_sum,
        ),
        areal_clamp_sequences_by_ratio,
    ),
    "areal.loglinear_log_probs": (
        lambda b: areal.loglinear_log_probs(
            b.logp, b.rollout, jnp.asarray(VERSIONS), version=5
        ),
        areal_loglinear,
    ),
    "areal.shaped_rewards": (
        lambda b: areal.shaped_rewards(b.rewards, bias=0.5, scale=1.7, reward_clip=3.0),
        areal_shaped,
    ),
    "areal.token_rewards": (
        lambda b: areal.token_rewards(b.rewards, b.kl, b.mask, kl_coef=0.3),
        lambda: fill(last_tokens(B.rewards) - 0.3 * B.kl, 0.0),
    ),
    "areal.gae": (
        lambda b: areal.gae(
            b.token_rewards,
            b.values,
            b.mask,
            gamma=0.97,
            lambda_=0.9,
            bootstrap_value=b.rewards,
        ),
        areal_gae,
    ),
    "areal.batch_normalised": (
        lambda b: areal.batch_normalised(SMALL * b.adv, b.mask),
        lambda: white(SMALL * B.adv, scale=lambda var: math.sqrt(var) + 1e-5),
        WHITE,
    ),
    "areal.group_normalised": (
        lambda b: areal.group_normalised(SMALL * b.adv, b.mask, **GROUPS),
        lambda: areal_normalised("group"),
        WHITE,
    ),
    "areal.group_centred": (
        lambda b: areal.group_centred(SMALL * b.adv, b.mask, **GROUPS),
        lambda: areal_normalised("batch"),
        WHITE,
    ),
    "areal.group_normalised of one": (
        lambda b: areal.group_normalised(b.adv, b.mask, group_size=1),
        lambda: fill((B.adv - of_rows(B.adv)) / (1 + 1e-5), 0.0),
    ),
    "areal.leave_one_out": (
        lambda b: areal.leave_one_out(b.rewards, **GROUPS),
        lambda: grouped(rloo),
    ),
    "areal.leave_one_out of one": (
        lambda b: areal.leave_one_out(b.rewards, group_size=1),
        lambda: B.rewards,
    ),
    "nemo.leave_one_out_advantages": (
        lambda b: nemo.leave_one_out_advantages(b.rewards, eps=3e-3, **BY_ID),
        lambda: grouped(of_others(nemo_score), IDS),
    ),
    "nemo.group_advantages": (
        lambda b: nemo.group_advantages(b.rewards, eps=2e-3, **BY_ID),
        lambda: grouped(standard(2e-3), IDS),
    ),
    "nemo.gdpo_advantages": (
        lambda b: nemo.gdpo_advantages(
            jnp.asarray(RNG_PARTS), jnp.asarray(COEFS), **BY_ID
        ),
        nemo_gdpo,
        WHITE,
    ),
    "nemo.reinforce_plus_plus_advantages": (
        lambda b: nemo.reinforce_plus_plus_advantages(
            SMALL * b.rewards, b.mask, penalty=SMALL * b.kl, **BY_ID
        ),
        lambda: nemo_normalised(SMALL * (grouped(centred, IDS)[:, None] - B.kl)),
        WHITE,
    ),
    "nemo.raw_reward_advantages": (
        lambda b: nemo.raw_reward_advantages(SMALLER * b.rewards, b.mask),
        lambda: nemo_normalised(SMALLER * np.repeat(B.rewards[:, None], T, 1)),
        WHITE,
    ),
    "nemo.token_rewards": (
        lambda b: nemo.token_rewards(b.rewards, b.mask, penalty=0.3 * b.kl),
        lambda: fill(last_tokens(B.rewards) - 0.3 * B.kl, 0.0),
    ),
    "nemo.gae": (
        lambda b: nemo.gae(
            SMALL * b.token_rewards,
            SMALL * b.values,
            b.mask,
            gamma=0.97,
            lambda_=jaxppo.length_adaptive_lambda(b.mask, alpha=0.4),
            lambda_value=0.8,
        ),
        nemo_gae,
        WHITE,
    ),
    "nemo.distillation_advantages": (
        lambda b: nemo.distillation_advantages(b.logp, b.ref, b.mask),
        lambda: fill(B.ref - B.logp, 0.0),
    ),
    "open_instruct.sequence_rho_weights": (
        samplers(
            open_instruct.sequence_rho_weights, floor=0.7, cap=1.2, low=0.6, high=1.3
        ),
        oi_sequence_rho,
    ),
    "open_instruct.divergence_rho_weights": (
        lambda b: open_instruct.divergence_rho_weights(
            b.old, b.rollout, b.adv, b.mask, floor=0.7, cap=1.2, low=0.3, high=0.5
        ),
        oi_divergence_rho,
    ),
    "open_instruct.sequence_rho_weights far off": (
        lambda b: open_instruct.sequence_rho_weights(
            b.old.at[0, 0].add(15.0), b.rollout, b.mask, cap=30.0, high=30.0
        )[0],
        lambda: fill(np.exp(of_rows(np.clip(DRIFT + FAR, -10, 10))), 0.0),
    ),
    "open_instruct.divergence_rho_weights far off": (
        lambda b: open_instruct.divergence_rho_weights(
            b.old.at[0, 0].add(15.0), b.rollout, b.adv, b.mask, high=5e3
        )[0],
        lambda: fill(np.clip(np.exp(DRIFT + FAR), 0, 2), 0.0),
    ),
    "open_instruct.centered_advantages": (
        lambda b: open_instruct.centered_advantages(b.rewards, **GROUPS),
        lambda: grouped(centred),
    ),
    "open_instruct.standard_advantages": (
        lambda b: open_instruct.standard_advantages(b.rewards, **GROUPS),
        lambda: grouped(standard(1e-8, ddof=0)),
    ),
    "openrlhf.adaptive_kl": (
        lambda b: led(
            openrlhf.adaptive_kl(target=0.05, samples=640, init_coef=0.3, horizon=5000)
        ),
        lambda: steps_of(640 / 5000, 0.05, 0.3),
        1e-6,  # in float32
    ),
    "openrlhf.token_rewards": (
        shaped(openrlhf.token_rewards),
        lambda: openrlhf_rewards(B.rewards),
    ),
    "openrlhf.token_rewards of a coefficient below 0": (
        lambda b: openrlhf.token_rewards(b.rewards, b.kl, b.mask, kl_coef=-0.3),
        lambda: last_tokens(np.clip(B.rewards, -10, 10)),
    ),
    "openrlhf.gae": (
        lambda b: openrlhf.gae(
            b.token_rewards,
            b.values,
            b.mask,
            gamma=0.97,
            lambda_=0.9,
            scale_by_std=False,
        ),
        openrlhf_gae,
        WHITE,
    ),
    "openrlhf.whiten": (
        lambda b: openrlhf.whiten(SMALLER * b.adv, b.mask),
        lambda: openrlhf_white(SMALLER * B.adv),
        WHITE,
    ),
    "openrlhf.whiten of more": (
        lambda b: openrlhf.whiten(b.adv, b.mask),
        lambda: openrlhf_white(B.adv),
        WHITE,
    ),
    "openrlhf.cumulative_returns": (
        lambda b: openrlhf.cumulative_returns(b.token_rewards, b.mask, gamma=0.9),
        lambda: to_come(fill(B.token_rewards, 0.0), 0.9),
    ),
    "openrlhf.reinforce_advantages": (
        shaped(openrlhf.reinforce_advantages, gamma=0.9, scale_by_std=False),
        lambda: openrlhf_white(to_come(openrlhf_rewards(B.rewards), 0.9), std=False),
        WHITE,
    ),
    "openrlhf.reinforce_baseline_advantages": (
        shaped(openrlhf.reinforce_baseline_advantages, scale_by_std=False, **GROUPS),
        lambda: openrlhf_white(of_group(centred), std=False),
        WHITE,
    ),
    "openrlhf.dr_grpo_advantages": (
        shaped(openrlhf.dr_grpo_advantages, **GROUPS),
        lambda: of_group(centred),
    ),
    "openrlhf.group_norm_advantages": (
        shaped(openrlhf.group_norm_advantages, reward_clip=0.8, **GROUPS),
        lambda: of_group(lambda r: np.clip(standard(1e-9)(r), -0.8, 0.8)),
    ),
    "openrlhf.rloo_advantages": (
        shaped(openrlhf.rloo_advantages, **GROUPS),
        lambda: of_group(rloo),
    ),
    "openrlhf.flash_reinforce_advantages": (
        shaped(openrlhf.flash_reinforce_advantages),
        lambda: to_come(openrlhf_rewards(centred(B.rewards)), 1.0),
    ),
    "openrlhf.stop_properly_penalty": (
        lambda b: openrlhf.stop_properly_penalty(
            b.rewards, jnp.asarray(TRUNCATED), coef=-0.4
        ),
        stopped,
    ),
    "openrlhf.stop_properly_penalty that scales": (
        lambda b: openrlhf.stop_properly_penalty(
            b.rewards, jnp.asarray(TRUNCATED), coef=0.3
        ),
        scaled,
    ),
    "prime_rl.grpo_advantages": (
        lambda b: prime_rl.grpo_advantages(b.rewards, **GROUPS),
        lambda: grouped(centred),
    ),
    "prime_rl.length_penalised_advantages": (
        lambda b: prime_rl.length_penalised_advantages(
            b.rewards,
            b.lengths,
            b.lengths[::-1],
            b.turns,
            output_coef=0.4,
            input_coef=0.2,
            turns_coef=0.3,
            **GROUPS,
        ),
        prime_length_penalised,
    ),
    "prime_rl.max_rl_advantages": (
        lambda b: prime_rl.max_rl_advantages(b.positive - 0.1, **GROUPS),
        lambda: grouped(prime_max_rl, x=B.positive - 0.1),
    ),
    "prime_rl.rae_advantages": (
        lambda b: prime_rl.rae_advantages(
            b.rewards, jnp.asarray(AGENTS), jnp.array([0.3, -0.2]), decay=0.8
        ),
        prime_rae,
    ),
    "rlax.vtrace_td_error_and_advantage": (live_vtrace, vtrace),
    "roll.is_weights": (
        lambda b: roll.is_weights(
            jaxppo.sequence_log_ratio(b.old, b.rollout, b.mask), b.mask, cap=1.1
        ),
        roll_is_weights,
    ),
    "roll.probability_difference": (
        samplers(roll.probability_difference),
        lambda: fill(np.exp(B.old) - np.exp(B.rollout), 0.0),
    ),
    "roll.train_infer_metrics": (
        samplers(roll.train_infer_metrics),
        roll_train_infer_metrics,
    ),
    "roll.reinforce_advantages": (
        lambda b: roll.reinforce_advantages(b.token_rewards, b.mask, gamma=0.9),
        lambda: {
            "advantages": fill(to_come(fill(B.token_rewards, 0.0), 0.9), 0.0),
            "returns": to_come(fill(B.token_rewards, 0.0), 0.9),
        },
    ),
    "roll.group_advantages": (
        lambda b: roll.group_advantages(b.rewards, **GROUPS),
        lambda: grouped(standard(1e-6)),
    ),
    "roll.masked_whiten": (
        lambda b: roll.masked_whiten(SMALL * b.adv, b.mask),
        lambda: white(SMALL * B.adv),
        WHITE,
    ),
    "skyrl.grpo_advantages": (
        lambda b: skyrl.grpo_advantages(b.token_rewards, b.mask, eps=2e-3, **BY_ID),
        lambda: keeping(row_sums(B.token_rewards))[:, None],
    ),
    "skyrl.token_weights": (
        samplers(skyrl.token_weights, cap=1.3),
        lambda: {
            "": fill(np.minimum(ratios(), 1.3)),
            "tis_token_clip_high_ratio": mean(ratios() > 1.3),
        },
    ),
    "skyrl.sequence_weights": (
        samplers(skyrl.sequence_weights, cap=1.3),
        lambda: {
            "": np.minimum(np.exp(row_sums(DRIFT)), 1.3)[:, None],
            "tis_seq_clip_high_ratio": np.mean(np.exp(row_sums(DRIFT)) > 1.3),
        },
    ),
    "skyrl.token_mask": (
        samplers(skyrl.token_mask, **BOUNDS),
        lambda: {
            "": inside(ratios(), 0.7, 1.4) & MASK,
            "token_mask_ratio": mean(~inside(ratios(), 0.7, 1.4)),
        },
    ),
    "skyrl.outlier_mask": (
        samplers(skyrl.outlier_mask, low=0.6, high=1.7),
        skyrl_outlier,
    ),
    "skyrl.sequence_mask": (
        samplers(skyrl.sequence_mask, low=0.85, high=1.45),
        lambda: skyrl_of_sequences(
            "geo_sequence_mask", np.exp(row_means(DRIFT)), 0.85, 1.45
        ),
    ),
    "skyrl.trajectory_mask": (
        samplers(skyrl.trajectory_mask, **BOUNDS),
        lambda: skyrl_of_sequences(
            "product_sequence_mask", np.exp(row_sums(DRIFT)), 0.7, 1.4
        ),
    ),
    "skyrl.ratio_metrics": (samplers(skyrl.ratio_metrics), skyrl_ratio_metrics),
    "slime.opsm": (
        lambda b: slime.opsm(b.logp, b.old, b.adv, b.mask, threshold=0.01),
        slime_opsm,
    ),
    "slime.tis": (
        samplers(slime.tis, cap=1.4, floor=0.7),
        lambda: slime_tis(np.clip(ratios(), 0.7, 1.4)),
    ),
    "slime.icepop": (
        samplers(slime.icepop, **BOUNDS),
        lambda: slime_tis(np.where(inside(ratios(), 0.7, 1.4), ratios(), 0)),
    ),
    "slime.mis_weights": (
        lambda b: bounds_unnamed(
            slime.mis_weights(
                b.old,
                b.rollout,
                b.mask,
                level=jaxppo.trajectory_log_ratio,
                cap=1.4,
                floor=0.7,
            )
        ),
        slime_mis_weights,
    ),
    "slime.mis_mask": (
        samplers(slime.mis_mask, level=jaxppo.sequence_log_ratio, low=0.85, high=1.2),
        slime_mis_mask,
    ),
    "slime.mis_veto": (samplers(slime.mis_veto, threshold=0.6), slime_mis_veto),
    "slime.group_advantages": (
        lambda b: slime.group_advantages(b.rewards, **GROUPS),
        lambda: grouped(standard(1e-6)),
    ),
    "slime.group_advantages without std": (
        lambda b: slime.group_advantages(b.rewards, scale_by_std=False, **GROUPS),
        lambda: grouped(centred),
    ),
    "slime.token_rewards": (
        lambda b: slime.token_rewards(b.rewards, b.kl, b.mask),
        slime_rewards,
    ),
    "slime.reinforce_plus_plus_returns": (
        lambda b: slime.reinforce_plus_plus_returns(b.token_rewards, gamma=0.9),
        lambda: to_come(B.token_rewards, 0.9),
    ),
    "slime.reinforce_plus_plus_baseline_advantages": (
        lambda b: slime.reinforce_plus_plus_baseline_advantages(
            b.rewards, b.kl, b.mask, **GROUPS
        ),
        lambda: fill(grouped(centred)[:, None] - B.kl, 0.0),
    ),
    "slime.whitened": (
        lambda b: slime.whitened(SMALL * b.adv, b.mask),
        lambda: white(SMALL * B.adv),
        WHITE,
    ),
    "trl.token_mask": (
        lambda b: trl.token_mask(b.old, jnp.asarray(UNKNOWN), b.mask, **BOUNDS),
        trl_token_mask,
    ),
    "trl.sequence_truncate": (
        lambda b: trl.sequence_truncate(b.old, jnp.asarray(UNKNOWN), b.mask, **BOUNDS),
        trl_sequence_truncate,
    ),
    "trl.sequence_mask": (
        lambda b: trl.sequence_mask(b.old, jnp.asarray(UNKNOWN), b.mask, **WIDE),
        trl_sequence_mask,
    ),
    "trl.summed_rewards": (
        lambda b: jnp.nan_to_num(
            trl.summed_rewards(b.several, jnp.asarray(COEFS)), nan=99.0
        ),
        lambda: np.nan_to_num(trl_summed(), nan=99.0),
    ),
    "trl.group_advantages": (
        lambda b: trl.group_advantages(b.missing, eps=2e-3, **GROUPS),
        lambda: grouped(skipping_nan(standard(2e-3)), x=B.missing),
    ),
    "trl.batch_advantages": (
        lambda b: trl.batch_advantages(b.missing, eps=2e-3, **GROUPS),
        trl_batch,
    ),
    "trl.unscaled_advantages": (
        lambda b: trl.unscaled_advantages(b.missing, **GROUPS),
        lambda: grouped(skipping_nan(centred), x=B.missing),
    ),
    "trl.gdpo_advantages": (
        lambda b: trl.gdpo_advantages(
            b.several, jnp.asarray(COEFS), eps=2e-3, **GROUPS
        ),
        trl_gdpo,
        WHITE,
    ),
    "trl.penalised_rewards": (
        lambda b: trl.penalised_rewards(
            b.rewards, b.old, b.ref, b.mask, kl_coef=0.3, low=-0.2, high=3.0
        ),
        lambda: np.clip(B.rewards, -0.2, 3) - 0.3 * row_sums(B.old - B.ref),
    ),
    "trl.rloo_advantages": (
        lambda b: trl.rloo_advantages(b.missing, **GROUPS),
        lambda: grouped(skipping_nan(rloo), x=B.missing),
    ),
    "trl.normalised_rloo_advantages": (
        lambda b: trl.normalised_rloo_advantages(
            b.missing.at[3].set(jnp.nan), eps=2e-3, **GROUPS
        ),
        trl_normalised_rloo,
        WHITE,
    ),
    "tunix.dr_grpo_advantages": (
        lambda b: tunix.dr_grpo_advantages(b.rewards, **GROUPS),
        lambda: grouped(centred),
    ),
    "verl.batch_normalised": (
        lambda b: verl.batch_normalised(b.weights, b.mask),
        lambda: verl_normalised(B.weights, mean(B.weights)),
    ),
    "verl.batch_normalised of nothing": (
        lambda b: verl.batch_normalised(0 * b.weights, b.mask),
        lambda: verl_normalised(0 * B.weights, 1.0),
    ),
    "verl.batch_normalised_sequences": (
        lambda b: verl.batch_normalised_sequences(b.weights, b.mask),
        lambda: verl_normalised(B.weights, by_some_row(B.weights)),
    ),
    "verl.gdpo": (
        lambda b: verl.gdpo(
            jnp.stack([b.token_rewards, b.kl]),
            b.mask,
            weights=SMALL * jnp.asarray(COEFS),
            eps=2e-3,
            **BY_ID,
        ),
        verl_gdpo,
        WHITE,
    ),
    "verl.kl_in_reward": (
        lambda b: verl.kl_in_reward(b.token_rewards, b.kl, b.mask, kl_coef=0.3),
        lambda: B.token_rewards - 0.3 * fill(B.kl, 0.0),
    ),
    "verl.kl_control": (
        lambda b: led(
            verl.kl_control(init_coef=0.3, target=0.05, horizon=5000, batch_size=640)
        ),
        lambda: steps_of(640 / 5000, 0.05, 0.3),
        1e-6,  # in float32
    ),
}


# --- the comparison ---


def parts(out):
    """What a recipe gives, by name: "" is its value."""
    if isinstance(out, jaxppo.Advantages):
        return out._asdict()
    if isinstance(out, tuple) and isinstance(out[1], dict):
        return {"": out[0], **out[1]}
    if isinstance(out, tuple):
        return {str(i): x for i, x in enumerate(out)}
    return out if isinstance(out, dict) else {"": out}


def number(x):
    return x.value if isinstance(x, (jaxppo.Mean, jaxppo.Max, jaxppo.Min)) else x


def numbers(out):
    named = parts(out)
    for k, x in named.items():  # of several batches, they merge as what they are
        assert not isinstance(x, jaxppo.Max) or "max" in k
        assert not isinstance(x, jaxppo.Min) or "min" in k
    return {k: jnp.asarray(number(x), jnp.float64) for k, x in named.items()}


def batch(arrays):
    return SimpleNamespace(**arrays, mask=jnp.asarray(MASK))


def close(got, expected, tolerance=1e-6, what=""):
    """NaN in what is expected: anything goes."""
    got, expected = np.asarray(got), np.asarray(expected, np.float64)
    assert got.shape == expected.shape, what
    got = np.where(np.isnan(expected), np.nan, got)
    np.testing.assert_allclose(got, expected, tolerance, tolerance, err_msg=what)


def agree(got, expected, tolerance=1e-6):
    assert got.keys() == expected.keys()
    # Shares and counts are float32, also here.
    for name, x in expected.items():
        close(got[name], x, max(tolerance, 1e-6) if name else tolerance, name)


PROBE = RNG.normal(1, 1, (N, T))  # an array's gradient is that of its sum, so weighed


def scalar(x):
    return (x * np.where(MASK, PROBE, 0)).sum() if x.ndim else x


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_its_formula(name, x64):
    recipe, formula, by = LOSSES[name]

    def loss(p, arrays):
        out = numbers(recipe(p, batch(arrays)))
        return scalar(out[""]), out

    arrays = {k: jnp.asarray(x) for k, x in A.items()}
    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, got), grad = run(arrays[by], arrays)
    agree(got, parts(formula(A[by])), 1e-9)
    close(grad, central_differences(formula, A[by]), 1e-7, "gradient")


def central_differences(formula, p, step=1e-5):
    """The gradient of a formula's value, of a sum of its entries if it has several."""
    out = np.zeros(p.shape)

    def value(q):
        x = np.asarray(parts(formula(q))[""], np.float64)
        return scalar(np.nan_to_num(x))

    for place in np.ndindex(p.shape):
        moved = np.zeros(p.shape)
        moved[place] = step
        out[place] = (value(p + moved) - value(p - moved)) / (2 * step)
    return out


@pytest.mark.parametrize("name", VALUES)
def test_a_value_is_its_formula(name, x64):
    recipe, formula, *tolerance = VALUES[name]
    run = jax.jit(lambda arrays: numbers(recipe(batch(arrays))))
    got = run({k: jnp.asarray(x) for k, x in A.items()})
    agree(got, parts(formula()), *(tolerance or [1e-9]))


CONSTANT = [
    "areal.clamp_sequences_by_ratio",
    "areal.loglinear_log_probs",
    "areal.reject_sequences_by_kl",
    "nemo.distillation_advantages",
    "open_instruct.divergence_rho_weights",
    "open_instruct.sequence_rho_weights",
    "roll.is_weights",
    "roll.probability_difference",
    "skyrl.sequence_weights",
    "skyrl.token_weights",
    "slime.icepop",
    "slime.mis_weights",
    "slime.tis",
    "trl.sequence_mask",
    "trl.sequence_truncate",
    "trl.token_mask",
    "verl.batch_normalised",
    "verl.batch_normalised_sequences",
    "verl.kl_in_reward",
]


@pytest.mark.parametrize("name", CONSTANT)
def test_what_weighs_is_not_differentiated(name, x64):
    arrays = {k: jnp.asarray(x) for k, x in A.items()}

    def value(moving):
        return scalar(numbers(VALUES[name][0](batch(arrays | moving)))[""])

    moving = {k: arrays[k] for k in ("logp", "old", "kl", "weights")}
    grads = jax.jit(jax.grad(lambda moving: jnp.sum(value(moving))))(moving)
    assert not any(jnp.any(x != 0) for x in grads.values())
