"""The public functions again: float64 NumPy, one element at a time, from the papers.

Slow and plain on purpose: no vectorisation, no guards, no code shared with jaxppo.
A `Mean` is `(total, count)`, a `Max` or `Min` its value.
"""

import decimal
import functools
import math
import statistics

import numpy as np
from scipy import integrate

# Element by element, whatever the shapes broadcast to.
per_element = functools.partial(np.vectorize, otypes=[float])


def kept(x, mask):
    """The entries that count, as a list."""
    return [float(value) for value, keep in zip(x.flat, mask.flat, strict=True) if keep]


def sequences(x, mask):
    """Of each sequence with at least one token that counts, those tokens."""
    rows = zip(x.reshape(-1, x.shape[-1]), mask.reshape(-1, x.shape[-1]), strict=True)
    return [tokens for x, mask in rows if (tokens := kept(x, mask))]


# --- sums, means, variances ---


def masked_sum(x, mask):
    return math.fsum(kept(x, mask))


def masked_mean(x, mask):
    return statistics.fmean(kept(x, mask))


def masked_variance(x, mask, *, ddof=0):
    x = kept(x, mask)
    return statistics.pvariance(x) * len(x) / (len(x) - ddof)


def whiten(x, mask, *, ddof=0, eps=1e-8):
    mean, std = masked_mean(x, mask), math.sqrt(masked_variance(x, mask, ddof=ddof))
    return np.where(mask, (x - mean) / (std + eps), 0)


# --- aggregation ---


def token_mean(per_token, mask):
    return masked_sum(per_token, mask), np.count_nonzero(mask)


def token_sum(per_token, mask):
    return masked_sum(per_token, mask), 0


def sequence_mean(per_token, mask):
    means = [statistics.fmean(tokens) for tokens in sequences(per_token, mask)]
    return math.fsum(means), len(means)


def sequence_sum(per_token, mask, *, scale=1.0):
    sums = [scale * math.fsum(tokens) for tokens in sequences(per_token, mask)]
    return math.fsum(sums), len(sums)


# --- ratios ---


@per_element
def log_ratio(log_probs, old_log_probs, mask, *, max_abs=20.0):
    return min(max(log_probs - old_log_probs, -max_abs), max_abs) if mask else 0


def sequence_log_ratio(log_probs, old_log_probs, mask, *, max_abs=20.0):
    x = log_ratio(log_probs, old_log_probs, mask, max_abs=max_abs)
    out = np.zeros(x.shape)
    for row in np.ndindex(x.shape[:-1]):
        if any(mask[row]):
            out[row][mask[row]] = statistics.fmean(kept(x[row], mask[row]))
    return out


# --- policy terms ---


@per_element
def clipped_surrogate(
    log_ratio, advantages, *, clip_eps=0.2, clip_eps_high=None, dual_clip=None
):
    high = clip_eps if clip_eps_high is None else clip_eps_high
    ratio = math.exp(log_ratio)
    clipped = min(max(ratio, 1 - clip_eps), 1 + high)
    objective = min(ratio * advantages, clipped * advantages)
    if dual_clip is not None and advantages < 0:
        objective = max(objective, dual_clip * advantages)
    return -objective


@per_element
def policy_gradient(log_probs, advantages, mask):
    return -advantages * log_probs if mask else 0


# --- value terms ---


@per_element
def squared_value(values, returns, mask):
    return (values - returns) ** 2 / 2 if mask else 0


@per_element
def clipped_value(values, old_values, returns, mask, *, clip_eps=0.2):
    held = min(max(values, old_values - clip_eps), old_values + clip_eps)
    return max((values - returns) ** 2, (held - returns) ** 2) / 2 if mask else 0


# --- KL ---


@per_element
def kl_k1(log_ratio):
    return log_ratio


@per_element
def kl_k2(log_ratio):
    return log_ratio**2 / 2


@per_element
def kl_k3(log_ratio):
    with decimal.localcontext(prec=60):  # digits enough for all that cancels
        x = decimal.Decimal(log_ratio)
        return float((-x).exp() - 1 + x)


def unbiased_gradient_kl(log_ratio, *, estimator=kl_k3):
    return estimator(log_ratio)


def approx_kl_k1(log_ratio):
    return kl_k1(-log_ratio)


def approx_kl_k3(log_ratio):
    return kl_k3(-log_ratio)


# --- estimators along time ---


def trajectories(
    rewards, values, discounts, lambda_, bootstrap_value, next_values, mask
):
    """Each trajectory's steps that count, with their neighbours, and where they are."""
    lead = rewards.shape[:-1]
    discounts = np.broadcast_to(discounts, rewards.shape)
    lambda_ = np.broadcast_to(lambda_, rewards.shape)
    for row in np.ndindex(lead):
        steps = np.flatnonzero(mask[row])
        v = [float(values[row][t]) for t in steps]
        last = 0.0 if bootstrap_value is None else float(bootstrap_value[row])
        following = [*v[1:], last] if v else []
        if next_values is not None:
            following = [float(next_values[row][t]) for t in steps]
        of = lambda x: [float(x[row][t]) for t in steps]
        yield (row, steps), of(rewards), v, following, of(discounts), of(lambda_)


def gae(
    rewards,
    values,
    discounts,
    *,
    lambda_=0.95,
    bootstrap_value=None,
    next_values=None,
    mask,
):
    advantages, returns = np.zeros(rewards.shape), np.zeros(rewards.shape)
    for at, r, v, v_next, gamma, lam in trajectories(
        rewards, values, discounts, lambda_, bootstrap_value, next_values, mask
    ):

        def advantage(t):
            if t == len(r):
                return 0.0
            delta = r[t] + gamma[t] * v_next[t] - v[t]
            return delta + gamma[t] * lam[t] * advantage(t + 1)

        advantages[at] = [advantage(t) for t in range(len(r))]
        returns[at] = [advantage(t) + v[t] for t in range(len(r))]
    return advantages, returns


def discounted_returns(rewards, discounts, *, bootstrap_value=None, mask):
    out = np.zeros(rewards.shape)
    for at, r, _, v_next, gamma, _ in trajectories(
        rewards, 0 * rewards, discounts, 1.0, bootstrap_value, None, mask
    ):
        # r_t + gamma_t r_{t+1} + gamma_t gamma_{t+1} r_{t+2} + ... + bootstrap
        r = [*r, v_next[-1] if r else 0.0]
        out[at] = [
            math.fsum(math.prod(gamma[t:s]) * r[s] for s in range(t, len(r)))
            for t in range(len(r) - 1)
        ]
    return out


def vtrace(
    log_ratio,
    rewards,
    values,
    discounts,
    *,
    lambda_=1.0,
    rho_clip=1.0,
    c_clip=1.0,
    bootstrap_value=None,
    next_values=None,
    mask,
):
    advantages, targets = np.zeros(rewards.shape), np.zeros(rewards.shape)
    for at, r, v, v_next, gamma, lam in trajectories(
        rewards, values, discounts, lambda_, bootstrap_value, next_values, mask
    ):
        n = len(r)
        row, steps = at
        ratio = [math.exp(log_ratio[row][t]) for t in steps]
        rho = [min(rho_clip, x) for x in ratio]
        decay = [
            g * l * min(c_clip, x) for g, l, x in zip(gamma, lam, ratio, strict=True)
        ]
        td = [rho[t] * (r[t] + gamma[t] * v_next[t] - v[t]) for t in range(n)]
        # Remark 1's sum: v_s + sum over t >= s of gamma^{t-s} c_s ... c_{t-1} delta_t
        excess = [
            math.fsum(math.prod(decay[s:t]) * td[t] for t in range(s, n))
            for s in range(n)
        ]
        later = [*excess[1:], 0.0]
        q = [r[t] + gamma[t] * (v_next[t] + lam[t] * later[t]) for t in range(n)]
        advantages[at] = [rho[t] * (q[t] - v[t]) for t in range(n)]
        targets[at] = [v[t] + excess[t] for t in range(n)]
    return advantages, targets


# --- estimators over groups ---


def groups(rewards, mask, group_size):
    """The indices and the rewards of each group's samples that count."""
    for row in np.ndindex(rewards.shape[:-1]):
        for start in range(0, rewards.shape[-1], group_size):
            members = [i for i in range(start, start + group_size) if mask[row][i]]
            yield (row, members), [float(rewards[row][i]) for i in members]


def group_advantages(rewards, mask, *, group_size, scale_by_std=True, ddof=1, eps=1e-6):
    out = np.zeros(rewards.shape)
    for at, r in groups(rewards, mask, group_size):
        if len(r) > 1:
            std = math.sqrt(statistics.pvariance(r) * len(r) / (len(r) - ddof))
            scale = 1 / (std + eps) if scale_by_std else 1
            out[at] = [(x - statistics.mean(r)) * scale for x in r]
    return out


def leave_one_out_advantages(rewards, mask, *, group_size):
    out = np.zeros(rewards.shape)
    for at, r in groups(rewards, mask, group_size):
        if len(r) > 1:
            others = [r[:i] + r[i + 1 :] for i in range(len(r))]
            out[at] = [
                x - statistics.mean(rest) for x, rest in zip(r, others, strict=True)
            ]
    return out


# --- rollout correction ---


@per_element
def truncated_weights(log_ratio, *, cap=2.0):
    return min(math.exp(log_ratio), cap)


@per_element
def band_weights(log_ratio, *, low=0.5, high=2.0):
    return ratio if low <= (ratio := math.exp(log_ratio)) <= high else 0


# --- heads ---


def categorical(logits, actions, mask):
    log_probs, entropy = np.zeros(actions.shape), np.zeros(actions.shape)
    for row in zip(*np.nonzero(mask), strict=True):
        support = [float(z) for z in logits[row] if z > -math.inf]
        top = max(support)
        log_total = top + math.log(math.fsum(math.exp(z - top) for z in support))
        log_probs[row] = logits[row][actions[row]] - log_total
        logs = [z - log_total for z in support]
        entropy[row] = -math.fsum(math.exp(log_p) * log_p for log_p in logs)
    return log_probs, entropy


def normal_log_density(x, mean, log_std):
    z = (x - mean) / math.exp(log_std)
    return -(z**2) / 2 - log_std - math.log(2 * math.pi) / 2


def diagonal_normal(mean, log_std, actions, mask):
    log_probs, entropy = np.zeros(mean.shape), np.zeros(mean.shape)
    log_std = np.broadcast_to(log_std, mean.shape)
    for at in np.ndindex(mean.shape):
        if mask[at[:-1]]:
            log_probs[at] = normal_log_density(actions[at], mean[at], log_std[at])
            entropy[at] = (
                math.log(2 * math.pi * math.e * math.exp(log_std[at]) ** 2) / 2
            )
    return log_probs.sum(-1), entropy.sum(-1)


def tanh_normal(mean, log_std, pre_tanh_actions, mask):
    log_probs, entropy = np.zeros(mean.shape), np.zeros(mean.shape)
    log_std = np.broadcast_to(log_std, mean.shape)
    for at in np.ndindex(mean.shape):
        if not mask[at[:-1]]:
            continue
        m, s = float(mean[at]), float(log_std[at])

        def log_density(u):  # of tanh(u): the normal's, over the slope 1 / cosh(u)^2
            return normal_log_density(u, m, s) + 2 * math.log(math.cosh(u))

        def surprise(u):
            return -math.exp(normal_log_density(u, m, s)) * log_density(u)

        log_probs[at] = log_density(pre_tanh_actions[at])
        far = 10 * math.exp(s)
        entropy[at], _ = integrate.quad(
            surprise, m - far, m + far, epsabs=1e-13, epsrel=1e-13, limit=200
        )
    return log_probs.sum(-1), entropy.sum(-1)


# --- metrics ---


@per_element
def clip_fraction(log_ratio, *, clip_eps=0.2, clip_eps_high=None):
    high = clip_eps if clip_eps_high is None else clip_eps_high
    return not 1 - clip_eps <= math.exp(log_ratio) <= 1 + high


@per_element
def clip_fraction_lower(log_ratio, advantages, *, clip_eps=0.2):
    return advantages < 0 and math.exp(log_ratio) < 1 - clip_eps


@per_element
def clip_fraction_upper(log_ratio, advantages, *, clip_eps=0.2):
    return advantages > 0 and math.exp(log_ratio) > 1 + clip_eps


@per_element
def bound_fraction(log_ratio, *, max_abs=20.0):
    return abs(log_ratio) >= max_abs


def ratio_max(log_ratio, mask):
    return math.exp(max(kept(log_ratio, mask)))


def ratio_min(log_ratio, mask):
    return math.exp(min(kept(log_ratio, mask)))


def effective_sample_size(log_ratio, mask):
    w = [math.exp(x) for x in kept(log_ratio, mask)]
    return math.fsum(w) ** 2 / (len(w) * math.fsum(x**2 for x in w))


def explained_variance(values, returns, mask):
    total = statistics.pvariance(kept(returns, mask))
    return 1 - statistics.pvariance(kept(returns - values, mask)) / total


# --- the composition ---


def ppo_loss(
    log_probs,
    old_log_probs,
    advantages,
    mask,
    *,
    values=None,
    old_values=None,
    returns=None,
    entropy=None,
    ref_log_probs=None,
    weights=1.0,
    clip_eps=0.2,
    clip_eps_high=None,
    dual_clip=None,
    value_coef=0.5,
    value_clip_eps=None,
    entropy_coef=0.0,
    kl_coef=0.0,
    kl=kl_k3,
    aggregate=token_mean,
):
    high = clip_eps if clip_eps_high is None else clip_eps_high
    x = log_ratio(log_probs, old_log_probs, mask)
    surrogate = clipped_surrogate(
        x, advantages, clip_eps=clip_eps, clip_eps_high=high, dual_clip=dual_clip
    )
    losses, per_token = {"policy_loss": weights * surrogate}, {}
    loss = losses["policy_loss"]
    if values is not None:
        reach = math.inf if value_clip_eps is None else value_clip_eps
        old_values = values if old_values is None else old_values
        losses["value_loss"] = clipped_value(
            values, old_values, returns, mask, clip_eps=reach
        )
        loss = loss + value_coef * losses["value_loss"]
    if entropy is not None:
        per_token["entropy"] = entropy
        loss = loss - entropy_coef * entropy
    if ref_log_probs is not None:
        per_token["kl"] = kl(log_ratio(log_probs, ref_log_probs, mask))
        loss = loss + kl_coef * per_token["kl"]
    per_token |= {
        "approx_kl": approx_kl_k3(x),
        "approx_kl_k1": approx_kl_k1(x),
        "clip_fraction": clip_fraction(x, clip_eps=clip_eps, clip_eps_high=high),
        "clip_fraction_lower": clip_fraction_lower(x, advantages, clip_eps=clip_eps),
        "clip_fraction_upper": clip_fraction_upper(x, advantages, clip_eps=high),
        "bound_fraction": bound_fraction(x),
    }
    metrics = {name: aggregate(term, mask) for name, term in losses.items()}
    metrics |= {name: token_mean(term, mask) for name, term in per_token.items()}
    metrics |= {"ratio_max": ratio_max(x, mask), "ratio_min": ratio_min(x, mask)}
    return aggregate(loss, mask), metrics
