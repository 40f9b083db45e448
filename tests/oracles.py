"""The public functions again: float64 NumPy, one element at a time, from the papers.

Slow and plain on purpose: no vectorisation, no guards, no code shared with jaxppo.
A `Mean` is `(total, count)`, a `Max` or `Min` its value.
"""

import decimal
import functools
import itertools
import math
import statistics

import jax
import numpy as np
from scipy import integrate, special

# Element by element, whatever the shapes broadcast to.
per_element = functools.partial(np.vectorize, otypes=[float])


def kept(x, mask):
    """The entries that count, as a list."""
    return [float(value) for value, keep in zip(x.flat, mask.flat, strict=True) if keep]


def sequences(x, mask):
    """Of each sequence with at least one token that counts, those tokens."""
    rows = zip(*rows_of(x, mask), strict=True)
    return [tokens for x, mask in rows if (tokens := kept(x, mask))]


# --- sums, means, variances ---


def along(statistic, nothing):
    """A statistic of all that counts, or of what counts along the last axis."""

    def reduce(x, mask, *, axis=None, keepdims=False):
        rows = (
            [(x, mask)] if axis is None else list(zip(*rows_of(x, mask), strict=True))
        )
        found = [statistic(k) if (k := kept(*row)) else nothing for row in rows]
        shape = () if axis is None else x.shape[:-1]
        return np.reshape(found, (*shape, 1) if keepdims else shape)

    return reduce


def rows_of(*arrays):
    # Not -1, which nothing can be of an empty array.
    return [x.reshape(math.prod(x.shape[:-1]), x.shape[-1]) for x in arrays]


masked_sum = along(math.fsum, 0)
masked_mean = along(statistics.fmean, 0)
masked_max = along(max, -math.inf)


def masked_variance(x, mask, *, ddof=0):
    x = kept(x, mask)
    return statistics.pvariance(x) * len(x) / (len(x) - ddof)


def centred(x, mask):
    return np.where(mask, x - masked_mean(x, mask), 0)


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


def prompt_mean(per_token, mask, *, group_size):
    means = []
    for start in range(0, len(mask), group_size):
        rows = slice(start, start + group_size)
        means += (
            [statistics.fmean(t)] if (t := kept(per_token[rows], mask[rows])) else []
        )
    return math.fsum(means), len(means)


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


sequence_token_log_ratio = sequence_log_ratio


def sequence_token_slope(log_probs, old_log_probs, mask, *, max_abs=20.0):
    return log_ratio(log_probs, old_log_probs, mask, max_abs=max_abs)


def trajectory_log_ratio(log_probs, old_log_probs, mask, *, max_abs=20.0):
    out = np.zeros(mask.shape)
    for row in np.ndindex(mask.shape[:-1]):
        total = math.fsum(kept((log_probs - old_log_probs)[row], mask[row]))
        out[row][mask[row]] = min(max(total, -max_abs), max_abs)
    return out


def segment_log_ratio(log_probs, old_log_probs, mask, *, max_abs=20.0):
    x = log_ratio(log_probs, old_log_probs, mask, max_abs=max_abs)
    out = np.zeros(mask.shape)
    for row in np.ndindex(mask.shape[:-1]):
        run = []
        for t in range(mask.shape[-1] + 1):
            if t < mask.shape[-1] and mask[row][t]:
                run.append(t)
            elif run:
                out[row][run] = statistics.fmean(x[row][run])
                run = []
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


@per_element
def unclipped_surrogate(log_ratio, advantages):
    return -math.exp(log_ratio) * advantages


def geometric_mean_surrogate(
    log_ratio, advantages, mask, *, clip_eps=0.4, clip_eps_high=None
):
    high = clip_eps if clip_eps_high is None else clip_eps_high
    advantages = np.broadcast_to(advantages, mask.shape)
    out = np.zeros(mask.shape)
    for row in np.ndindex(mask.shape[:-1]):
        pairs = [
            (log_ratio[row][t], advantages[row][t]) for t in np.flatnonzero(mask[row])
        ]
        if not pairs:
            continue
        # sign * min(sign * x, sign * clip(x)): the pessimistic of the two
        held = [min(x, high) if a > 0 else max(x, -clip_eps) for x, a in pairs]
        mean = statistics.fmean(a for _, a in pairs)
        out[row][mask[row]] = -math.exp(statistics.fmean(held)) * mean
    return out


@per_element
def cispo(log_probs, log_ratio, advantages, mask, *, low=0.0, high=5.0):
    weight = min(max(math.exp(log_ratio), low), high)
    return -weight * advantages * log_probs if mask else 0


@per_element
def topr(log_probs, log_ratio, advantages, mask, *, cap=1.0):
    weight = 1 if advantages > 0 else min(math.exp(log_ratio), cap)
    return -weight * advantages * log_probs if mask else 0


@per_element
def soft_gated_surrogate(
    log_ratio, advantages, *, temperature=1.0, temperature_negative=1.05
):
    tau = temperature if advantages > 0 else temperature_negative
    gate = 1 / (1 + math.exp(-tau * (math.exp(log_ratio) - 1)))
    return -gate * 4 / tau * advantages


def vespo_weights(
    log_ratio,
    advantages,
    mask,
    *,
    k=2.0,
    lambda_=3.0,
    k_negative=3.0,
    lambda_negative=2.0,
):
    advantages = np.broadcast_to(advantages, mask.shape)
    out = np.zeros((*mask.shape[:-1], 1))
    for row in np.ndindex(mask.shape[:-1]):
        if not any(mask[row]):
            continue
        x = max(min(math.fsum(kept(log_ratio[row], mask[row])), 20), math.log(1e-8))
        good = math.fsum(kept(advantages[row], mask[row])) >= 0
        power, decay = (k, lambda_) if good else (k_negative, lambda_negative)
        out[row] = math.exp(x) ** power * math.exp(decay * (1 - math.exp(x)))
    return out


@per_element
def shaped_off_policy(log_probs, advantages, mask, *, gamma=0.1):
    p = math.exp(log_probs)
    return -advantages * p / (p + gamma) if mask else 0


@per_element
def binary_tv(log_probs, old_log_probs, mask):
    return abs(math.exp(log_probs) - math.exp(old_log_probs)) if mask else 0


@per_element
def binary_kl(log_probs, old_log_probs, mask, *, eps=1e-8):
    p, q = math.exp(log_probs), math.exp(old_log_probs)
    rest = (1 - q) * math.log((1 - q + eps) / (1 - p + eps))
    return q * math.log(q / p) + rest if mask else 0


@per_element
def trust_region_mask(log_ratio, advantages, divergence, *, low=0.2, high=None):
    if advantages > 0:
        return not (log_ratio > 0 and divergence > (low if high is None else high))
    return not (log_ratio < 0 and divergence > low)


@per_element
def quadratic_surrogate(log_ratio, advantages, *, clip_eps=0.2):
    r = math.exp(log_ratio)
    return -(r * advantages - abs(advantages) / (2 * clip_eps) * (r - 1) ** 2)


@per_element
def discovered_surrogate(log_ratio, advantages, *, alpha=2.0, beta=0.6):
    r = math.exp(log_ratio)
    if advantages >= 0:
        u = (r - 1) * advantages
        drift = max(u - alpha * math.tanh(u / alpha), 0)
    else:
        u = log_ratio * advantages
        drift = max(u - beta * math.tanh(u / beta), 0)
    return drift - r * advantages


# --- covariance ---


def token_covariance(log_probs, advantages, mask):
    advantages = np.broadcast_to(advantages, mask.shape)
    a, x = masked_mean(advantages, mask), masked_mean(log_probs, mask)
    return np.where(mask, (advantages - a) * (log_probs - x), 0)


def first(order, eligible, mask, fraction):
    """The eligible places in this order, as many as the fraction of what counts."""
    places = [at for at in np.argsort(order, None) if eligible.flat[at]]
    out = np.zeros(mask.shape, bool)
    for at in places[: max(math.floor(fraction * np.count_nonzero(mask)), 1)]:
        out.flat[at] = True
    return out


def clip_cov_mask(key, covariance, mask, *, fraction=2e-4, low=1.0, high=5.0):
    eligible = mask & (low < covariance) & (covariance < high)
    return first(
        np.asarray(jax.random.uniform(key, mask.shape, np.float32)),
        *(eligible, mask, fraction),
    )


def kl_cov_mask(covariance, mask, *, fraction=2e-3):
    return first(-covariance, mask, mask, fraction)


# --- value terms ---


@per_element
def squared_value(values, returns, mask):
    return (values - returns) ** 2 / 2 if mask else 0


@per_element
def clipped_value(
    values, old_values, returns, mask, *, clip_eps=0.2, error=squared_value
):
    held = min(max(values, old_values - clip_eps), old_values + clip_eps)
    return max(error(values, returns, mask), error(held, returns, mask))


@per_element
def bounded_value(values, old_values, returns, mask, *, clip_eps=0.2):
    held = min(max(values, old_values - clip_eps), old_values + clip_eps)
    return (held - returns) ** 2 / 2 if mask else 0


@per_element
def huber_value(values, returns, mask, *, delta=1.0):
    size = abs(values - returns)
    loss = size**2 / 2 if size <= delta else delta * size - delta**2 / 2
    return loss if mask else 0


# --- distributional critics ---


def two_hot(x, support):
    out = np.zeros((*x.shape, len(support)))
    for at in np.ndindex(x.shape):
        value = min(max(x[at], support[0]), support[-1])
        k = max(np.searchsorted(support, value) - 1, 0)
        share = (value - support[k]) / (support[k + 1] - support[k])
        out[at][k], out[at][k + 1] = 1 - share, share
    return out


def hl_gauss(x, edges, *, sigma):
    out = np.zeros((*x.shape, len(edges) - 1))
    for at in np.ndindex(x.shape):
        value = min(max(x[at], edges[0]), edges[-1])
        mass = [
            integrate.quad(
                lambda u: math.exp(-((u / sigma) ** 2) / 2), a, b, epsrel=1e-14
            )
            for a, b in itertools.pairwise(edges - value)
        ]
        out[at] = np.array([m for m, _ in mass]) / math.fsum(m for m, _ in mass)
    return out


def categorical_value(logits, target_probs, mask):
    out = np.zeros(mask.shape)
    for at in zip(*np.nonzero(mask), strict=True):
        total = math.log(math.fsum(math.exp(z) for z in logits[at]))
        terms = zip(target_probs[at], logits[at], strict=True)
        out[at] = math.fsum(p * (total - z) for p, z in terms)
    return out


def expected_value(logits, support):
    out = np.zeros(logits.shape[:-1])
    for at in np.ndindex(out.shape):
        weights = [math.exp(z) for z in logits[at]]
        terms = zip(weights, support, strict=True)
        out[at] = math.fsum(w * v for w, v in terms) / math.fsum(weights)
    return out


def quantile_value(quantiles, returns, mask, *, delta=1.0):
    out, k = np.zeros(mask.shape), quantiles.shape[-1]
    for at in zip(*np.nonzero(mask), strict=True):
        losses = []
        for i, q in enumerate(quantiles[at]):
            tau = (2 * i + 1) / (2 * k)
            weight = 1 - tau if returns[at] < q else tau
            losses.append(
                weight * huber_value(q, returns[at], True, delta=delta) / delta
            )
        out[at] = statistics.fmean(losses)
    return out


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


@per_element
def kl_abs(log_ratio):
    return abs(log_ratio)


def bounded_kl(log_ratio, *, estimator=kl_k3, max_value=10.0):
    return np.minimum(np.maximum(estimator(log_ratio), -max_value), max_value)


def importance_weighted_kl(log_ratio, policy_log_ratio, *, estimator=kl_k3):
    return np.exp(policy_log_ratio) * estimator(log_ratio)


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
        yield (*row, steps), of(rewards), v, following, of(discounts), of(lambda_)


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
        ratio = [math.exp(x) for x in log_ratio[at]]
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


def length_adaptive_lambda(mask, *, alpha=0.05):
    lengths = np.count_nonzero(mask, -1, keepdims=True)
    return np.array(
        [max(1 - 1 / (alpha * n), 0) if n else 0 for n in lengths.flat]
    ).reshape(lengths.shape)


# --- estimators over groups ---


def groups(rewards, mask, group_size=None, group_ids=None):
    """The indices and the rewards of each group's samples that count."""
    for row in np.ndindex(rewards.shape[:-1]):
        n = rewards.shape[-1]
        if group_ids is None:
            ids = [i // group_size for i in range(n)]
        else:
            ids = np.broadcast_to(group_ids, rewards.shape)[row].tolist()
        for label in sorted(set(ids)):
            members = [i for i in range(n) if ids[i] == label and mask[row][i]]
            yield (row, members), [float(rewards[row][i]) for i in members]


def group_advantages(
    rewards,
    mask,
    *,
    group_size=None,
    group_ids=None,
    weights=None,
    scale_by_std=True,
    ddof=1,
    eps=1e-6,
    singleton=0.0,
):
    out = np.zeros(rewards.shape)
    for (row, members), r in groups(rewards, mask, group_size, group_ids):
        if len(r) == 1:
            out[row][members] = singleton * r[0]
        if len(r) < 2:
            continue
        w = [1.0] * len(r) if weights is None else [weights[row][i] for i in members]
        mean = math.fsum(np.multiply(w, r)) / math.fsum(w)
        square = math.fsum((x - mean) ** 2 for x in r)
        scale = 1 / (math.sqrt(square / (len(r) - ddof)) + eps) if scale_by_std else 1
        out[row][members] = [(x - mean) * scale for x in r]
    return out


def others(r):
    return [r[:i] + r[i + 1 :] for i in range(len(r))]


def leave_one_out_advantages(
    rewards, mask, *, group_size=None, group_ids=None, singleton=0.0
):
    out = np.zeros(rewards.shape)
    for (row, members), r in groups(rewards, mask, group_size, group_ids):
        rest = others(r)
        out[row][members] = [
            x - statistics.fmean(o) if o else singleton * x
            for x, o in zip(r, rest, strict=True)
        ]
    return out


def leave_one_out_std(rewards, mask, *, group_size=None, group_ids=None, ddof=1):
    out = np.zeros(rewards.shape)
    for (row, members), r in groups(rewards, mask, group_size, group_ids):
        out[row][members] = [
            math.sqrt(statistics.pvariance(o) * len(o) / (len(o) - ddof))
            if len(o) > ddof
            else 0
            for o in others(r)
        ]
    return out


def pass_at_k_advantages(
    rewards, mask, *, group_size=None, group_ids=None, scale_by_std=True, eps=1e-6
):
    out = np.zeros(rewards.shape)
    for (row, members), r in groups(rewards, mask, group_size, group_ids):
        if len(r) > 1:
            second, best = sorted(r)[-2:]
            scale = 1 / (statistics.stdev(r) + eps) if scale_by_std else 1
            out[row][members[r.index(best)]] = (best - second) * scale
    return out


def varied_groups(rewards, mask, *, group_size=None, group_ids=None):
    out = np.zeros(rewards.shape, bool)
    for (row, members), r in groups(rewards, mask, group_size, group_ids):
        out[row][members] = len(set(r)) > 1
    return out


def optimal_token_baseline(
    returns,
    log_probs,
    sum_squared_probs,
    mask,
    *,
    group_size=None,
    group_ids=None,
    weights=None,
    turn_aligned=False,
    zero_tail=True,
    eps=1e-8,
):
    out = np.zeros(returns.shape)
    n = len(returns)
    everyone = np.ones(n, bool)
    rows = np.arange(n, dtype=float)
    for (_, members), _ in groups(rows, everyone, group_size, group_ids):
        if len(members) == 1:
            continue
        at_place = {}  # place: (row, time, G, W) of each
        for i in members:
            energy, written = 0.0, 0
            for t in np.flatnonzero(mask[i]):
                rho = 1.0 if weights is None else weights[i, t]
                p = math.exp(log_probs[i, t])
                energy += (1 - 2 * p + sum_squared_probs[i, t]) * rho**2
                place = written if turn_aligned else t
                at_place.setdefault(place, []).append((i, t, returns[i, t], energy))
                written += 1
        lengths = sorted(int(np.count_nonzero(mask[i])) for i in members)
        for place, tokens in at_place.items():
            top = math.fsum(g * w for *_, g, w in tokens)
            baseline = top / (math.fsum(w for *_, w in tokens) + eps)
            for i, t, *_ in tokens:
                longest = np.count_nonzero(mask[i]) == lengths[-1] > lengths[-2]
                tail = zero_tail and longest and place >= lengths[-2]
                out[i, t] = 0 if tail else baseline
    return out


# --- rewards, entropy ---


@per_element
def overlong_penalty(lengths, *, max_length, buffer, penalty=1.0):
    over = lengths - (max_length - buffer)
    return 0 if over <= 0 else -penalty * min(over / buffer, 1)


def top_entropy_mask(entropy, mask, *, fraction=0.2):
    if not mask.any():
        return mask
    return mask & (entropy >= np.quantile(entropy[mask], 1 - fraction))


# --- rollout correction ---


@per_element
def truncated_weights(log_ratio, *, cap=2.0, floor=0.0):
    return max(min(math.exp(log_ratio), cap), floor)


@per_element
def band_weights(log_ratio, *, low=0.5, high=2.0):
    return ratio if low <= (ratio := math.exp(log_ratio)) <= high else 0


def normalised_weights(weights, mask):
    return np.where(mask, weights / masked_mean(weights, mask), 0)


def rejection_mask(statistic, mask, *, low=-math.inf, high=math.inf):
    return mask & (low <= statistic) & (statistic <= high)


def off_policy_sequence_mask(log_ratio, advantages, mask, *, threshold):
    drift = masked_mean(-log_ratio, mask, axis=-1, keepdims=True)
    return mask & ((advantages >= 0) | (drift <= threshold))


def second_moment_mask(log_ratio, mask, *, threshold=0.04):
    places = [at for at in np.argsort(log_ratio**2, None) if mask.flat[at]]
    squares = [log_ratio.flat[at] ** 2 for at in places]
    while len(squares) > 1 and statistics.fmean(squares) >= threshold:
        squares.pop()
    out = np.zeros(mask.shape, bool)
    for at in places[: len(squares)]:
        out.flat[at] = True
    return out


def correction_metrics(log_ratio, mask, *, low=0.5, high=2.0):
    ratio = np.exp(log_ratio)
    rows = sequences(log_ratio, mask)
    gaps = [statistics.fmean(row) for row in rows]
    chi2 = [math.exp(2 * min(max(math.fsum(row), -20), 20)) - 1 for row in rows]
    return {
        "weight": token_mean(ratio, mask),
        "weight_square": token_mean(ratio**2, mask),
        "weight_max": max(kept(ratio, mask)),
        "weight_min": min(kept(ratio, mask)),
        "above": token_mean(ratio > high, mask),
        "below": token_mean(ratio < low, mask),
        "chi2_token": token_mean(ratio**2 - 1, mask),
        "chi2_sequence": (math.fsum(chi2), len(chi2)),
        "kl_k1": token_mean(kl_k1(-log_ratio), mask),
        "kl_k3": token_mean(kl_k3(-log_ratio), mask),
        "log_perplexity_gap": (math.fsum(gaps), len(gaps)),
        "log_perplexity_gap_abs": (math.fsum(abs(g) for g in gaps), len(gaps)),
        "log_perplexity_gap_max": max(gaps),
        "log_perplexity_gap_min": min(gaps),
    }


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


def head_logits(hidden, unembed, bias, temperature, softcap):
    """Of every token: its distribution's logits, in Python's numbers."""
    for at in np.ndindex(hidden.shape[:-1]):
        zs = [math.fsum(hidden[at] * word) for word in unembed]
        if bias is not None:
            zs = [z + b for z, b in zip(zs, bias, strict=True)]
        if softcap is not None:
            zs = [softcap * math.tanh(z / softcap) if z > -math.inf else z for z in zs]
        yield at, [z / temperature[at] for z in zs]


def logs(zs):
    top = max(zs)
    total = top + math.log(math.fsum(math.exp(z - top) for z in zs))
    return total, [z - total for z in zs]


def token_log_probs(
    hidden, unembed, targets, mask, temperature, bias=None, softcap=None, **_
):
    unembed = unembed if unembed.shape[1] == hidden.shape[-1] else unembed.T
    out = np.zeros((3, *targets.shape))
    for at, zs in head_logits(hidden, unembed, bias, temperature, softcap):
        if mask[at] and 0 <= targets[at] < len(zs):
            total, log_p = logs(zs)
            entropy = -math.fsum(math.exp(x) * x for x in log_p if x > -math.inf)
            out[(slice(None), *at)] = log_p[targets[at]], entropy, total
    return tuple(out)


def head_kl(
    hidden,
    unembed,
    ref_hidden,
    ref_unembed,
    mask,
    temperature,
    bias=None,
    ref_bias=None,
    softcap=None,
    **_,
):
    turned = unembed.shape[1] != hidden.shape[-1]
    unembed, ref_unembed = (w.T if turned else w for w in (unembed, ref_unembed))
    refs = head_logits(ref_hidden, ref_unembed, ref_bias, temperature, softcap)
    own = head_logits(hidden, unembed, bias, temperature, softcap)
    out = np.zeros((2, *mask.shape))
    for (at, zs), (_, ref_zs) in zip(own, refs, strict=True):
        if mask[at]:
            p, q = logs(zs)[1], logs(ref_zs)[1]
            kl = lambda p, q: math.fsum(
                math.exp(a) * (a - b)
                for a, b in zip(p, q, strict=True)
                if a > -math.inf
            )
            out[(slice(None), *at)] = kl(p, q), kl(q, p)
    return tuple(out)


def selective_log_softmax(logits, targets, mask, temperature):
    out = np.zeros((2, *targets.shape))
    for at in np.ndindex(targets.shape):
        if mask[at] and 0 <= targets[at] < logits.shape[-1]:
            _, log_p = logs([z / temperature[at] for z in logits[at]])
            entropy = -math.fsum(math.exp(x) * x for x in log_p if x > -math.inf)
            out[(slice(None), *at)] = log_p[targets[at]], entropy
    return tuple(out)


def categorical_kl(logits, ref_logits, mask):
    out = np.zeros(mask.shape)
    for row in zip(*np.nonzero(mask), strict=True):
        p, q = (
            [
                math.exp(z) / math.fsum(math.exp(z) for z in zs)
                for zs in (x[row],)
                for z in zs
            ]
            for x in (logits, ref_logits)
        )
        out[row] = math.fsum(
            a * math.log(a / b) for a, b in zip(p, q, strict=True) if a
        )
    return out


def normal_kl(mean, log_std, ref_mean, ref_log_std, mask):
    out = np.zeros(mask.shape)
    for row in zip(*np.nonzero(mask), strict=True):
        for d in range(mean.shape[-1]):
            m, s, n, r = (x[row][d] for x in (mean, log_std, ref_mean, ref_log_std))
            square = (math.exp(2 * s) + (m - n) ** 2) / (2 * math.exp(2 * r))
            out[row] += r - s + square - 0.5
    return out


def log_beta(a, b):
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def beta_kl(alpha, beta, ref_alpha, ref_beta, mask):
    out = np.zeros(mask.shape)
    for row in zip(*np.nonzero(mask), strict=True):
        for d in range(alpha.shape[-1]):
            a, b, c, e = (x[row][d] for x in (alpha, beta, ref_alpha, ref_beta))
            of_a, of_b, of_sum = (float(special.digamma(x)) for x in (a, b, a + b))
            slopes = (a - c) * of_a + (b - e) * of_b + (c - a + e - b) * of_sum
            out[row] += log_beta(c, e) - log_beta(a, b) + slopes
    return out


def beta(alpha, beta, actions, mask):
    log_probs, entropy = np.zeros(alpha.shape), np.zeros(alpha.shape)
    for at in np.ndindex(alpha.shape):
        if mask[at[:-1]]:
            a, b, x = (float(x[at]) for x in (alpha, beta, actions))
            powers = (a - 1) * math.log(x) + (b - 1) * math.log1p(-x)
            log_probs[at] = powers - log_beta(a, b)
            of_a, of_b, of_sum = (float(special.digamma(x)) for x in (a, b, a + b))
            of_powers = (a - 1) * (of_a - of_sum) + (b - 1) * (of_b - of_sum)
            entropy[at] = log_beta(a, b) - of_powers
    return log_probs.sum(-1), entropy.sum(-1)


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
