"""The exact KL divergence of two language models' heads, over the whole vocabulary."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from . import _checks, _mesh, _stream
from ._head_math import FAR, LOWEST, check_head, constants, make_head
from ._head_plan import check_options, head_plan
from ._stream import Blocks
from ._types import Leaf, RowMask, Scalar


class HeadKL(NamedTuple):
    """What `head_kl` returns, nats, each `(*batch)`, in float32 at least.

    Attributes:
      from_policy: KL(policy || ref), which RLHF penalises.
      from_ref: KL(ref || policy), which distillation from a teacher minimises.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> hidden, unembed = jnp.array([[1.0, 0.0]]), jnp.eye(2)
      >>> kl = jaxppo.head_kl(hidden, unembed, 2 * hidden, unembed)
      >>> kl.from_policy.round(3), kl.from_ref.round(3)
      (Array([0.083], dtype=float32), Array([0.067], dtype=float32))
    """

    from_policy: Leaf
    from_ref: Leaf


class Sums(NamedTuple):
    """Of a token's logits so far, relative to each head's maximum."""

    top: jax.Array
    total: jax.Array  # of e^(z - top)
    moment: jax.Array  # of e^(z - top) (z - ref z)
    ref_top: jax.Array
    ref_total: jax.Array
    ref_moment: jax.Array  # of e^(ref z - ref top) (ref z - z)


def head_kl(
    hidden: Float[Array, "*b d"],
    unembed: Float[Array, "v w"],
    ref_hidden: Float[Array, "*b e"],
    ref_unembed: Float[Array, "x y"],
    *,
    mask: RowMask | None = None,
    temperature: Float[Array, "*#b"] | Scalar = 1.0,
    bias: Float[Array, " k"] | None = None,
    ref_bias: Float[Array, " k"] | None = None,
    softcap: Scalar | None = None,
    vocab_last: bool = False,
    vocab_block: int | None = None,
    token_block: int | None = None,
    vocab_axis: _mesh.AxisName | None = None,
    token_spec: PartitionSpec | None = None,
) -> HeadKL:
    """KL divergence of each token's distribution from a reference's, without logits.

    KL(p || q) = sum of p (log p - log q) over the vocabulary, p of `hidden` and
    `unembed`, q of the reference's, and the other way round; both from one pass over
    blocks of both heads' logits. Not an estimate from the token sampled, as k1 to k3
    are: it has no variance and its gradient is exact. The reference is constant.
    Differentiable backwards, and forwards over that (`jax.hessian`); forward mode alone
    takes `categorical_kl`.

    Args:
      hidden: `(*batch, d)`.
      unembed: `(vocab, d)`.
      ref_hidden: `(*batch, ref_d)`.
      ref_unembed: `(vocab, ref_d)`, over the same vocabulary.
      mask: `(*batch)`, bool or integer; what it leaves out gives 0 and no gradient.
      temperature: a number or `(*batch)`, positive; of both; constant.
      bias: `(vocab,)`; -inf forbids a word.
      ref_bias: likewise.
      softcap: positive; of both; constant.
      vocab_last: both unembeddings are `(d, vocab)`.
      vocab_block: words whose logits exist at a time; None: by platform.
      token_block: tokens, likewise.
      vocab_axis: mesh axis that both unembeddings' words are sharded over, as in
        `token_log_probs`.
      token_spec: how the tokens are sharded, as there.

    Returns:
      `HeadKL(from_policy, from_ref)`, each `(*batch)`, at least 0.

    Raises:
      TypeError: an array is not floating point.
      ValueError: shapes do not fit, or a number is out of range.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> hidden, unembed = jnp.ones((1, 1)), jnp.array([[0.0], [1.0]])
      >>> kl = jaxppo.head_kl(hidden, unembed, 0 * hidden, unembed)
      >>> kl.from_policy.round(3), kl.from_ref.round(3)
      (Array([0.111], dtype=float32), Array([0.12], dtype=float32))
    """
    fn = "head_kl"
    check_head(fn, hidden, unembed, None, bias, vocab_last)
    check_head(fn, ref_hidden, ref_unembed, None, ref_bias, vocab_last, "ref_")
    vocab_dim = 1 if vocab_last else 0
    if ref_hidden.shape[:-1] != hidden.shape[:-1]:
        raise ValueError(
            f"{fn}: `ref_hidden` has shape {ref_hidden.shape}, but `hidden` has shape "
            f"{hidden.shape}; both need the same tokens."
        )
    if ref_unembed.shape[vocab_dim] != unembed.shape[vocab_dim]:
        raise ValueError(
            f"{fn}: `ref_unembed` has shape {ref_unembed.shape}, but `unembed` has "
            f"shape {unembed.shape}; both need the same words: cut off padding."
        )
    plan = partial(
        head_plan, mode="recompute", vocab_block=vocab_block, token_block=token_block
    )
    check_options(fn, "recompute", vocab_block, token_block, 1)
    dtype = _checks.wide(hidden, unembed, ref_hidden, ref_unembed)
    like = jax.ShapeDtypeStruct(hidden.shape[:-1], dtype)
    temperature, softcap = constants(
        fn, temperature, softcap, **{"hidden[..., 0]": like}
    )
    keep = _checks.kept(fn, mask, **{"hidden[..., 0]": hidden[..., 0]})
    shards = _mesh.shards(fn, hidden, keep, unembed, vocab_dim, vocab_axis, token_spec)

    def on_shard(axes, tokens, words, softcap):
        hidden, ref_hidden, keep, temperature = tokens
        (unembed, _), (ref_unembed, _), (bias, _), (ref_bias, _) = words
        both = softcap, temperature, keep, vocab_last
        head = make_head(hidden, unembed, bias, *both)
        ref_head = make_head(ref_hidden, ref_unembed, ref_bias, *both)
        return _on_shard(plan, axes, (head, ref_head), keep)

    tokens = hidden, ref_hidden, keep, temperature
    words = [(x, vocab_dim) for x in (unembed, ref_unembed)]
    words += [(bias, 0), (ref_bias, 0)]
    if shards is None:
        return on_shard(_mesh.names(vocab_axis), tokens, words, softcap)
    run = partial(on_shard, shards.words)
    return shards.run(run, tokens, words, softcap, "tokens")


def _on_shard(plan, vocab_axes, heads, keep) -> HeadKL:
    shape, keep = keep.shape, keep.ravel()
    axes = _mesh.varies(heads, keep)
    keep = _mesh.varying(keep, axes - set(vocab_axes))
    heads = _mesh.varying(heads, axes | set(vocab_axes))
    how = plan(max(keep.size, 1), heads[0].vocab_size, heads[0].hidden.shape[1])
    out = _streamed((Blocks(*how[1:]), vocab_axes), heads) if keep.size else (keep,) * 2
    dtype = heads[0].inv_temperature.dtype
    out = (jnp.where(keep, x.astype(dtype), 0) for x in out)
    return HeadKL(*(x.reshape(shape) for x in out))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _streamed(setup, heads) -> HeadKL:
    return _not_negative(_fwd(setup, heads)[0])


def _streamed_fwd(setup, heads):
    out, *saved = _fwd(setup, heads)
    return _not_negative(out), (heads, out, saved)


def _streamed_bwd(setup, saved, cotangents):
    heads, out, (lse, ref_lse) = saved
    grads = HeadKL(*cotangents)
    kl = jnp.where(grads.from_policy == 0, 0, out.from_policy)  # it may be infinite
    level = grads.from_policy * kl - grads.from_ref

    def slope(zs, row, start):
        here = lambda x: _stream.rows(x, row, len(zs[0]))[:, None]
        u, ref_u = zs[0] - here(lse), zs[1] - here(ref_lse)
        weight = here(grads.from_policy)
        counts = (u > FAR) & (weight != 0) if _may_forbid(heads) else True
        gap = jnp.where(counts, u - ref_u, 0)
        u, ref_u = _bounded(heads, u, ref_u)
        own = jnp.exp(u) * (weight * gap - here(level))
        return own - here(grads.from_ref) * jnp.exp(ref_u)

    own = _stream.backward(heads, setup[0], slope)
    return ((heads[0].cotangent(*own), None),)


_streamed.defvjp(_streamed_fwd, _streamed_bwd)


def _fwd(setup, heads) -> tuple[HeadKL, jax.Array, jax.Array]:
    blocks, vocab_axes = setup

    def absorb(sums, zs, row, start):
        z, ref_z = zs
        top = jnp.maximum(sums.top, jnp.max(z, 1))
        ref_top = jnp.maximum(sums.ref_top, jnp.max(ref_z, 1))
        x, ref_x = _bounded(heads, z - top[:, None], ref_z - ref_top[:, None])
        e, ref_e = jnp.exp(x), jnp.exp(ref_x)
        gap = z - ref_z
        of = lambda e: jnp.where(e > 0, gap, 0) if _may_forbid(heads) else gap
        sums = _rescaled(sums, top, ref_top)
        return Sums(
            top,
            sums.total + jnp.sum(e, 1),
            sums.moment + jnp.sum(e * of(e), 1),
            ref_top,
            sums.ref_total + jnp.sum(ref_e, 1),
            sums.ref_moment - jnp.sum(ref_e * of(ref_e), 1),
        )

    zero = jnp.zeros_like(heads[0].inv_temperature)
    low = jnp.full_like(zero, LOWEST)
    sums = Sums(low, zero, zero, low, zero, zero)
    sums, _ = _stream.forward(heads, blocks, absorb, sums)
    if vocab_axes:
        top, ref_top = jax.lax.pmax((sums.top, sums.ref_top), vocab_axes)
        sums = _rescaled(sums, top, ref_top)
        added = jax.lax.psum(sums, vocab_axes)
        sums = added._replace(top=top, ref_top=ref_top)
    lse = sums.top + jnp.log(sums.total)
    ref_lse = sums.ref_top + jnp.log(sums.ref_total)
    kl = HeadKL(
        sums.moment / sums.total - (lse - ref_lse),
        sums.ref_moment / sums.ref_total + (lse - ref_lse),
    )
    return kl, lse, ref_lse


def _rescaled(sums: Sums, top: jax.Array, ref_top: jax.Array) -> Sums:
    scale = jnp.exp(jnp.maximum(sums.top - top, FAR))
    ref_scale = jnp.exp(jnp.maximum(sums.ref_top - ref_top, FAR))
    return Sums(
        top,
        sums.total * scale,
        sums.moment * scale,
        ref_top,
        sums.ref_total * ref_scale,
        sums.ref_moment * ref_scale,
    )


def _not_negative(kl: HeadKL) -> HeadKL:
    """What only rounding could make negative; the gradient knows nothing of it."""
    return jax.tree.map(lambda x: jnp.maximum(x, 0), kl)


def _may_forbid(heads: Any) -> bool:
    return any(head.bias is not None for head in heads)


def _bounded(heads: Any, *xs: jax.Array) -> Any:
    return [jnp.maximum(x, FAR) for x in xs] if _may_forbid(heads) else xs
