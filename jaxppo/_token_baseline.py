"""Baselines of single tokens, from the tokens at their place in other samples."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from . import _checks, _segments
from ._types import Scalar

Tokens = Float[Array, "n t"]
TokenMask = Bool[Array, "n t"] | Integer[Array, "n t"]


def optimal_token_baseline(
    returns: Tokens,
    log_probs: Tokens,
    sum_squared_probs: Tokens,
    mask: TokenMask | None = None,
    *,
    group_size: int | None = None,
    group_ids: Integer[Array, " n"] | None = None,
    weights: Tokens | None = None,
    turn_aligned: bool = False,
    zero_tail: bool = True,
    eps: Scalar = 1e-8,
) -> Tokens:
    """OTB: the baseline of each token that leaves policy gradients least variance.

    B_t = sum of G_t W_t / (sum of W_t + eps), over the samples of one prompt that have
    a token at t, where W_t adds up |d log pi / d logits|^2 = 1 - 2 pi + sum of pi^2
    over the tokens up to t. The advantage is `returns - B` (verl's
    `optimal_token_baseline`, and `tir_optimal_token_baseline` when turn-aligned).

    Args:
      returns: G, the rewards to come, `(n, time)`: `discounted_returns(rewards, 1.0,
        mask=mask)`.
      log_probs: log pi of the sampled tokens, nats, the same shape.
      sum_squared_probs: the sum over the vocabulary of pi^2, the same shape.
      mask: the same shape, bool or integer, nonzero counts.
      group_size: samples per prompt, consecutive; divides n. Or:
      group_ids: one integer per sample, equal for those of one prompt.
      weights: importance weights of the rollout; W's terms are times their squares.
      turn_aligned: count places without the masked tokens in between, so that the
        k-th token written meets the k-th token written.
      zero_tail: no baseline (0) in the only longest sample of a prompt from the length
        of the second longest on, where it has no company.
      eps: added to the sum of W.

    Returns:
      B, `(n, time)`, in float32 at least, without gradient; 0 at masked tokens and in
      a group of one.

    Raises:
      TypeError: an array is not floating point (or integer), or group_size is not an
        integer.
      ValueError: shapes differ; group_size does not divide n, or both or neither of it
        and group_ids are given; eps is negative.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> returns, log_probs = jnp.array([[1.0], [0.0]]), jnp.log(jnp.full((2, 1), 0.5))
      >>> sums = jnp.array([[0.25], [0.75]])
      >>> jaxppo.optimal_token_baseline(returns, log_probs, sums, group_size=2)
      Array([[0.25],
             [0.25]], dtype=float32)
    """
    fn = "optimal_token_baseline"
    named = dict(
        returns=returns, log_probs=log_probs, sum_squared_probs=sum_squared_probs
    )
    if weights is not None:
        named["weights"] = weights
    arrays = [jax.lax.stop_gradient(x) for x in _checks.arrays(fn, mask, **named)]
    returns, log_probs, squares = arrays[:3]
    if returns.ndim != 2:
        raise ValueError(f"{fn}: `returns` has shape {returns.shape}; expected (n, t).")
    eps = _checks.number(fn, "eps", eps, "[0, inf)", returns.dtype)
    keep = _checks.kept(fn, mask, returns=returns)
    lengths = jnp.sum(keep, -1, dtype=jnp.int32)
    total, top = _segments.groups(fn, group_size, group_ids, returns=lengths)

    energy = jnp.where(keep, 1 - 2 * jnp.exp(log_probs) + squares, 0)
    energy = energy if weights is None else energy * arrays[3] ** 2
    energy = jnp.where(keep, jnp.cumsum(energy, -1), 0)
    places = jnp.broadcast_to(jnp.arange(keep.shape[-1], dtype=jnp.int32), keep.shape)
    # A stable sort by "masked" brings the others to the front.
    order = jnp.argsort(~keep, -1, stable=True)
    if turn_aligned:
        returns, energy = (jnp.take_along_axis(x, order, -1) for x in (returns, energy))
    over = lambda x: jax.vmap(total, 1, 1)(x)
    weight = over(energy) + eps
    baseline = over(returns * energy) / jnp.where(weight == 0, 1, weight)
    if zero_tail:
        longest = top(lengths)
        alone = total((lengths == longest).astype(jnp.int32)) == 1
        second = top(jnp.where(lengths < longest, lengths, 0))
        tail = (alone & (lengths == longest))[:, None] & (places >= second[:, None])
        baseline = jnp.where(tail, 0, baseline)
    if turn_aligned:
        back = jnp.argsort(order, -1)
        baseline = jnp.take_along_axis(baseline, back, -1)
    single = total(jnp.ones_like(lengths)) == 1
    return jnp.where(keep & ~single[:, None], baseline, 0)
