"""What policy heads and their exact divergences share."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from . import _checks

# B_2k / (2k (2k - 1)), of Stirling's series: from 8 on, 6 terms leave 2e-14.
STIRLING = 1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360


def rows(
    fn: str, mask: Any, fill: float = 0, /, **named: Any
) -> tuple[list[Array], Array | None]:
    """Arrays with an axis past the rows, `fill` in rows the mask leaves out."""
    xs = _checks.arrays(fn, **named)
    first, like = next(iter(named)), xs[0]
    if not like.ndim or not like.shape[-1]:
        raise ValueError(
            f"{fn}: `{first}` has shape {like.shape}; expected (*batch, size), where "
            "the size is not 0."
        )
    keep = _checks.valid(fn, mask, **{f"{first}[..., 0]": like[..., 0]})
    if keep is None:
        return xs, None
    return [jnp.where(keep[..., None], x, fill) for x in xs], keep


def log_softmax(logits: Array) -> tuple[Array, Array]:
    """Log-probs, 0 outside the support, and the support."""
    support = ~jnp.isneginf(logits)
    top = jnp.max(logits, -1, keepdims=True)
    top = jax.lax.stop_gradient(jnp.where(jnp.isneginf(top), 0, top))
    # The double `where`: neither exp nor log sees what it must not differentiate.
    logits = jnp.where(support, logits - top, 0)
    total = jnp.sum(jnp.where(support, jnp.exp(logits), 0), -1, keepdims=True)
    log_total = jnp.log(jnp.where(total == 0, 1, total))  # 0: no action is allowed
    return jnp.where(support, logits - log_total, 0), support


def log_rest(u: Array, ratio: Array) -> Array:
    """u - log(1 + u), given 1 + u, too, which may be known better than u gives it."""
    near = jnp.abs(u) < 0.25
    # log(1 + u) = 2 (r + r^3 / 3 + ...), r = u / (2 + u), and u - 2 r = r u. To 8 terms
    # of the series it is exact in float64 for |u| < 1/4. (u = inf would be inf / inf.)
    small = jnp.where(near, u, 0)
    r = small / (2 + small)
    series = jnp.zeros_like(u)
    for k in range(17, 1, -2):
        series = 1 / k + r**2 * series
    far = u - jnp.log(jnp.where(near, 1, ratio))
    return jnp.where(near, r * (small - 2 * r**2 * series), far)


def stirling(x: Array) -> tuple[Array, Array]:
    """log Gamma(x) - ((x - 1/2) log x - x + log(2 pi) / 2), and its derivative.

    Small, -log(x) / 2 near 0 and 1 / (12 x) far out, so that nothing is lost in sums in
    which the rest cancels. psi(x) is log x - 1 / (2 x) plus the derivative.
    """
    far = x >= 8
    y = jnp.where(far, x, x + 8)
    value = slope = jnp.zeros_like(x)
    for k in range(len(STIRLING) - 1, -1, -1):
        value = STIRLING[k] + value / y**2
        slope = (2 * k + 1) * STIRLING[k] + slope / y**2
    # Eight steps up where x is not far: Gamma(z + 1) = z Gamma(z).
    z = jnp.where(far, 1, x)[..., None]
    z = z + jnp.arange(8, dtype=x.dtype).reshape((1,) * x.ndim + (-1,))
    step = jnp.log1p(1 / z)
    by_value = jnp.sum((z + 0.5) * step - 1, -1)
    by_slope = jnp.sum(step - (z + 0.5) / (z * (z + 1)), -1)
    value = value / y + jnp.where(far, 0, by_value)
    return value, jnp.where(far, 0, by_slope) - slope / y**2
