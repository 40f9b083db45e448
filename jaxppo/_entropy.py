"""Entropy as a lever: which tokens are learned, and how much a bonus weighs."""

import jax.numpy as jnp
from jaxtyping import Array, Bool

from . import _checks
from ._types import Controller, Mask, PerToken, Scalar


def top_entropy_mask(
    entropy: PerToken, mask: Mask | None = None, *, fraction: Scalar = 0.2
) -> Bool[Array, "*s"]:
    """The tokens of highest entropy: where the text forks, and learning pays.

    True from the (1 - fraction) quantile on, of the tokens that count in the whole
    array, interpolated linearly (Wang et al., 2025, arXiv:2506.01939, who learn from a
    fifth of the tokens; TRL's `top_entropy_quantile`).

    Args:
      entropy: H of the policy at each token, nats; any shape.
      mask: the same shape, bool or integer, nonzero counts.
      fraction: share of the tokens to keep, in (0, 1].

    Returns:
      Booleans of the same shape, False under the mask. To keep the denominator, use it
      as a weight; to shrink it, as a mask.

    Raises:
      TypeError: entropy is not floating point, or the mask is.
      ValueError: shapes differ, or fraction is out of (0, 1].

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> entropy = jnp.array([0.1, 2.0, 0.3, 0.2, 9.0])
      >>> jaxppo.top_entropy_mask(entropy, jnp.array([1, 1, 1, 1, 0]), fraction=0.25)
      Array([False,  True, False, False, False], dtype=bool)
    """
    fn = "top_entropy_mask"
    (x,) = _checks.arrays(fn, mask, entropy=entropy)
    fraction = _checks.number(fn, "fraction", fraction, "(0, 1]", x.dtype)
    keep = _checks.kept(fn, mask, entropy=x)
    if not x.size:
        return keep
    # Sorted with what does not count at the end, the quantile lies at a known place.
    ordered = jnp.sort(jnp.where(keep, x, jnp.inf).ravel())
    last = jnp.maximum(jnp.sum(keep, dtype=jnp.int32) - 1, 0)
    place = (1 - fraction) * last.astype(x.dtype)
    below = jnp.clip(jnp.floor(place).astype(jnp.int32), 0, last)
    low, high = ordered[below], ordered[jnp.minimum(below + 1, last)]
    share = place - below.astype(x.dtype)
    quantile = jnp.where(share == 0, low, low + share * (high - low))
    return keep & ~(x < quantile)


def adaptive_entropy(
    *,
    target: Scalar,
    init_coef: Scalar = 0.0,
    step: Scalar = 5e-3,
    min_coef: Scalar = 0.0,
    max_coef: Scalar = 1.0,
    metric: str = "entropy",
) -> Controller:
    """An entropy coefficient that follows a target: up a step below it, down above.

    coef +- step, held in [min_coef, max_coef] (Skywork-OR1, He et al., 2025,
    arXiv:2505.22312; TRL's `use_adaptive_entropy`, which leaves the bonus out while the
    entropy is above the target). Give it to `learner(adaptive={"entropy_coef": ...})`.
    An entropy that is not finite changes nothing.

    Args:
      target: entropy to hold, nats per token.
      init_coef: the first coefficient.
      step: what it changes by at each update, positive.
      min_coef: smallest coefficient.
      max_coef: largest coefficient.
      metric: the metric it observes.

    Returns:
      A `Controller`: `init() -> coef`, `update(coef, entropy) -> coef`.

    Raises:
      ValueError: a hyper-parameter is out of its range.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> controller = jaxppo.adaptive_entropy(target=0.2, step=0.25)
      >>> controller.update(controller.init(), jnp.array(0.1))
      Array(0.25, dtype=float32)
    """
    fn = "adaptive_entropy"
    finite, dtype = "(-inf, inf)", jnp.float32
    target = _checks.number(fn, "target", target, finite, dtype)
    init_coef = _checks.number(fn, "init_coef", init_coef, finite, dtype)
    step = _checks.number(fn, "step", step, "(0, inf)", dtype)
    low = _checks.number(fn, "min_coef", min_coef, finite, dtype)
    high = _checks.number(fn, "max_coef", max_coef, finite, dtype)

    def init():
        return jnp.copy(init_coef)  # the learner's state may be donated

    def update(coef, entropy):
        moved = jnp.where(entropy < target, coef + step, coef - step)
        return jnp.where(jnp.isfinite(entropy), jnp.clip(moved, low, high), coef)

    return Controller(init, update, metric)
