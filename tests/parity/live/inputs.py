"""A random batch of sequences, with what losses disagree about in it.

Keys, shapes and meanings are those of `inputs` in the reference values.
"""

import numpy as np

# Of log pi / old and of log old / rollout, on the first tokens of row 0, with A < 0,
# and of row 1, with A > 0: past a dual clip at 3, a cap at 2, a band of 0.8 to 1.25.
OUTLIERS = [(1.8, 0.9), (-1.8, -0.8), (0.3, -0.3), (-0.3, 0.3)]
# The same two on all tokens of row 2, with A < 0, and of row 3, with A > 0: past the
# narrower bands of what averages over a sequence.
SHIFTS = [(-0.35, -0.9), (0.35, 0.25)]


def draw(seed, rows=6, time=8, group_size=3, *, extreme=0.0, empty_rows=0, ties=0):
    """Inputs of a seed and a shape, float32.

    `extreme` is the share of tokens at which policy or rollout has gone far from the
    old policy, past the guards at log-ratios of 10 and 20. The last `empty_rows` have
    no token at all. The first `ties` groups have one and the same outcome throughout.
    """
    if rows % group_size or rows < 5 + empty_rows or time < 5:
        raise ValueError("needs whole groups, 5 rows with tokens and 5 steps")
    rng = np.random.default_rng([seed, rows, time, group_size])
    mask, tails = masks(rng, rows, time, empty_rows)
    policies = log_probs(rng, mask, extreme)
    batch = {
        **policies,
        "mask": mask,
        "adv": advantages(rng, rows),
        "entropy": rng.uniform(0.1, 2.0, mask.shape),
        "values": (values := rng.normal(size=mask.shape)),
        "old_values": values + rng.normal(0, 0.4, mask.shape),
        "returns": rng.normal(size=mask.shape),
        "token_rewards": outcomes(rng, mask, tails, ties * group_size),
        "group": np.repeat(np.arange(rows // group_size), group_size),
        "sum_pi_squared": sum_pi_squared(rng, np.exp(policies["old"])),
    }
    return {
        name: x if name == "group" else x.astype(np.float32)
        for name, x in batch.items()
    }


def masks(rng, rows, time, empty_rows):
    """Ragged rows, and the last token of each; rows 0 and 1 are long, row 2 has one.

    Row 1, and every row after row 2, may have a hole before its last token.
    """
    lengths = rng.integers(2, time + 1, rows)
    lengths[:4] = time, time - 1, 1, max(4, lengths[3])
    lengths[rows - empty_rows :] = 0
    steps = np.arange(time)
    mask = (steps < lengths[:, None]).astype(np.float64)
    tails = lengths - 1
    for row in [1, *range(3, rows)]:
        inner = steps[max(1, 4 * (row == 1)) : max(tails[row], 0)]
        if len(inner) and (row in (1, 3) or rng.random() < 0.5):
            first = rng.choice(inner)
            mask[row, first : min(first + rng.integers(1, 3), tails[row])] = 0
    return mask, tails


def advantages(rng, rows):
    """One per sequence, of known sign in the first four rows."""
    adv = rng.normal(size=rows)
    adv[:4] = (abs(adv[:4]) + 0.1) * [-1, 1, -1, 1]
    return adv


def log_probs(rng, mask, extreme):
    """Of the four policies, each near the old one but for the outliers."""
    drift, mismatch = jumps(rng, mask, extreme), jumps(rng, mask, extreme)
    old = -rng.gamma(1.0, 1.0, mask.shape) - abs(drift) - abs(mismatch)
    old[:2, : len(OUTLIERS)] = -3.0
    old[2:4] -= 1.0  # so that a shift up stays below 0
    near = lambda scale: rng.normal(0, scale, mask.shape)
    drift, mismatch = drift + near(0.35), mismatch + near(0.15)
    mismatch[4] *= 0.02  # one row within every band
    mismatch[4:5] *= 0.3  # and one not past the bound of a sequence's maximum
    drift[:2, : len(OUTLIERS)], mismatch[:2, : len(OUTLIERS)] = np.transpose(OUTLIERS)
    drift[2:4], mismatch[2:4] = np.transpose(SHIFTS)[..., None] + near(0.1)[2:4]
    logp, rollout, ref = old + drift, old - mismatch, old + near(0.3)
    policies = {"logp": logp, "old": old, "rollout": rollout, "ref": ref}
    return {name: -abs(x) for name, x in policies.items()}  # not cut: ties would differ


def sum_pi_squared(rng, probs):
    """Of a whole vocabulary, between what is possible with these of its tokens."""
    return probs**2 + rng.uniform(0.1, 0.9, probs.shape) * (1 - probs) ** 2


def jumps(rng, mask, share):
    """Log-ratios far from 0 at a share of the tokens, 0 at the others."""
    signs = rng.choice([-1, 1], mask.shape) * (rng.random(mask.shape) < share / 2)
    return mask * signs * rng.uniform(8, 25, mask.shape)


def outcomes(rng, mask, tails, tied_rows):
    """Right or wrong, and a little more, at the last token; just right if tied."""
    right = rng.integers(0, 2, len(mask)) + 0.25 * rng.normal(size=len(mask))
    right[:tied_rows] = 1
    at_tail = np.arange(mask.shape[1]) == tails[:, None]
    return np.where(at_tail, right[:, None], 0.0)
