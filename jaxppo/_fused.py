"""Log-probs and entropy of tokens, straight from hidden states and the unembedding."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Integer

from . import _checks, _head_math, _mesh, _stream
from ._head_math import TokenLogProbs
from ._head_plan import HeadPlan, Mode, check_options, head_plan
from ._stream import Blocks
from ._types import RowMask, Scalar


class Setup(NamedTuple):
    """What is static."""

    plan: HeadPlan
    compact: bool  # leave out the tokens that do not count
    vocab_axes: tuple[str, ...]


def token_log_probs(
    hidden: Float[Array, "*b d"],
    unembed: Float[Array, "v w"],
    targets: Integer[Array, "*b"],
    *,
    mask: RowMask | None = None,
    temperature: Float[Array, "*#b"] | Scalar = 1.0,
    bias: Float[Array, " k"] | None = None,
    softcap: Scalar | None = None,
    vocab_last: bool = False,
    mode: Mode = "auto",
    vocab_block: int | None = None,
    token_block: int | None = None,
    cache_bytes: int = 2**30,
    vocab_axis: _mesh.AxisName | None = None,
    token_spec: PartitionSpec | None = None,
) -> TokenLogProbs:
    """Log-probs of tokens and entropy, differentiable, without the logits in memory.

    With z = softcap(h W^T + b) / T, softcap(x) = c tanh(x / c), and p = softmax(z):
    log_prob = z_target - logsumexp(z); entropy = -sum of p log p. The same numbers as
    from logits, with gradients to hidden, unembed and bias, while only a block of the
    logits exists at a time: any loss goes on top. See docs/head.md.

    Args:
      hidden: h, the last hidden states, `(*batch, d)`.
      unembed: W, `(vocab, d)` as tied embeddings are.
      targets: indices of the tokens, integers, `(*batch)`. One outside the vocabulary
        (-100, say) is as good as masked.
      mask: `(*batch)`, bool or integer. What it leaves out gives 0 and no gradient,
        whatever is in hidden there, and costs nothing but its share of a block.
      temperature: T, of the sampler, a number or `(*batch)`, positive; constant.
      bias: b, `(vocab,)`; -inf forbids a word.
      softcap: c, positive; constant.
      vocab_last: unembed is `(d, vocab)`, as a dense layer's kernel is.
      mode: "recompute" makes the logits again for the gradient, "cached" keeps them,
        "reference" is plain code, for forward and second derivatives. "auto" caches
        where that is faster and the float32 logits fit `cache_bytes`; `head_plan` says
        which it will be.
      vocab_block: words whose logits exist at a time; None: by platform.
      token_block: tokens, likewise.
      cache_bytes: the most that "auto" may keep, per device.
      vocab_axis: mesh axis (or axes) that unembed's words are sharded over. Explicit
        axes are seen without it.
      token_spec: how the tokens are sharded, an entry an axis of `targets`, where
        the mesh's axes are Auto. Inside `shard_map` leave it out.

    Returns:
      `TokenLogProbs(log_probs, entropy, logsumexp)`, each `(*batch)`.

    Raises:
      TypeError: hidden, unembed or bias is not floating point, or targets not integers.
      ValueError: shapes do not fit, a number is out of range, or `vocab_axis` does not
        shard unembed.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> hidden, unembed = jnp.ones((2, 3)), jnp.zeros((5, 3))
      >>> out = jaxppo.token_log_probs(hidden, unembed, jnp.array([4, -100]))
      >>> out.log_probs.round(3), out.entropy.round(3)
      (Array([-1.609,  0.   ], dtype=float32), Array([1.609, 0.   ], dtype=float32))
    """
    fn = "token_log_probs"
    plan = partial(
        head_plan,
        mode=mode,
        vocab_block=vocab_block,
        token_block=token_block,
        cache_bytes=cache_bytes,
    )
    check_options(fn, mode, vocab_block, token_block, cache_bytes)
    _checks.integers(fn, targets=targets)
    _head_math.check_head(fn, hidden, unembed, targets, bias, vocab_last)
    like = jax.ShapeDtypeStruct(targets.shape, _checks.wide(hidden, unembed))
    temperature, softcap = _head_math.constants(fn, temperature, softcap, targets=like)
    keep = _checks.valid(fn, mask, targets=targets)
    vocab_dim = 1 if vocab_last else 0
    shards = _mesh.shards(
        fn, hidden, targets, unembed, vocab_dim, vocab_axis, token_spec
    )

    def on_shard(axes, tokens, words, softcap):
        hidden, targets, keep, temperature = tokens
        (unembed, _), (bias, _) = words
        found, targets = _head_math.inside(targets, unembed.shape[vocab_dim], axes)
        valid = found if keep is None else found & keep
        head = _head_math.make_head(
            hidden, unembed, bias, softcap, temperature, valid, vocab_last
        )
        return _on_shard(plan, axes, head, targets, valid, keep is not None)

    tokens = hidden, targets, keep, temperature
    words = [(unembed, vocab_dim), (bias, 0)]
    if shards is None:
        return on_shard(_mesh.names(vocab_axis), tokens, words, softcap)
    run = partial(on_shard, shards.words)
    return shards.run(run, tokens, words, softcap, "tokens")


def _on_shard(plan, vocab_axes, head, targets, valid, masked) -> TokenLogProbs:
    """Of this device's tokens, and words."""
    shape, d = targets.shape, head.hidden.shape[1]
    if not targets.size:
        empty = jnp.zeros(shape, head.inv_temperature.dtype)
        return TokenLogProbs(empty, empty, empty)
    targets, valid = targets.ravel(), valid.ravel()
    axes = _mesh.varies(head, targets, valid)
    targets, valid = _mesh.varying((targets, valid), axes - set(vocab_axes))
    head = _mesh.varying(head, axes | set(vocab_axes))
    how = plan(len(valid), head.vocab_size, d, masked=masked)
    if how.mode == "reference":
        out = _reference(head, targets, vocab_axes)
    else:
        compact = masked and how.token_block < len(valid)
        out = _streamed(Setup(how, compact, vocab_axes), head, targets, valid)
    return TokenLogProbs(*(jnp.where(valid, x, 0).reshape(shape) for x in out))


def _reference(head, targets, vocab_axes) -> TokenLogProbs:
    """Plain code, differentiable in every way."""
    z = head.tokens(0, len(targets)).logits()
    targets = _head_math.local(targets, head.vocab_size, vocab_axes)
    add = lambda x: jax.lax.psum(x, vocab_axes) if vocab_axes else x
    top = jax.lax.stop_gradient(jnp.max(z, 1))
    top = jax.lax.pmax(top, vocab_axes) if vocab_axes else top
    shifted = z - top[:, None]
    total = add(jnp.sum(jnp.exp(shifted), 1))
    finite = jnp.where(jnp.isneginf(shifted), 0, shifted)
    moment = add(jnp.sum(jnp.exp(shifted) * finite, 1))
    hit, chosen = _head_math.column(z, targets)
    chosen = add(jnp.where(hit, chosen, 0))
    lse = top + jnp.log(total)
    return TokenLogProbs(chosen - lse, jnp.log(total) - moment / total, lse)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _streamed(setup, head, targets, valid) -> TokenLogProbs:
    return _fwd(setup, head, targets, valid, keep=False)[0]


def _streamed_fwd(setup, head, targets, valid):
    keep = setup.plan.mode == "cached"
    out, kept = _fwd(setup, head, targets, valid, keep=keep)
    return out, (head, targets, valid, out, kept)


def _streamed_bwd(setup, saved, cotangents):
    head, targets, valid, out, kept = saved
    order = _order(setup, valid)
    gather = (lambda x: x) if order is None else order.gather
    out, grads = jax.tree.map(gather, (out, TokenLogProbs(*cotangents)))
    slope = _head_math.slope_of(out, grads, gather(targets), head, setup.vocab_axes)
    dh, dw, db = _stream.backward(
        (head if order is None else order.of(head),),
        Blocks(*setup.plan[1:]),
        slope,
        count=None if order is None else order.count,
        kept=kept,
    )
    dh = dh.astype(head.hidden.dtype)
    if order is not None:
        dh = jnp.where(valid[:, None], dh[order.place], 0)
    return head.cotangent(dh, dw, db), None, None


_streamed.defvjp(_streamed_fwd, _streamed_bwd)


def _fwd(setup, head, targets, valid, *, keep):
    order = _order(setup, valid)
    if order is not None:
        targets = order.gather(targets)
    sums, kept = _stream.forward(
        (head if order is None else order.of(head),),
        Blocks(*setup.plan[1:]),
        _head_math.absorb_into(targets, head, setup.vocab_axes),
        _head_math.zero_sums(len(targets), head.inv_temperature.dtype),
        count=None if order is None else order.count,
        keep=keep,
    )
    out = _head_math.from_sums(_head_math.merged(sums, setup.vocab_axes))
    if order is not None:
        out = jax.tree.map(lambda x: jnp.where(valid, x[order.place], 0), out)
    return out, kept


def _order(setup, valid):
    return _stream.ordered(valid, setup.plan.token_block) if setup.compact else None
