"""Log-probs and entropy of tokens, straight from hidden states and the unembedding."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Integer

from . import _checks, _mesh, _stream
from ._stream import Blocks, Head
from ._types import Leaf, Scalar

Rows = Float[Array, "*b"]
RowMask = Bool[Array, "*b"] | Integer[Array, "*b"]
Mode = Literal["auto", "recompute", "cached", "reference"]
LOWEST = -1e30  # a running maximum to start from: finite, so that no inf - inf is taken
FAR = -1e4  # below a maximum: its exp is 0 in any dtype, and 0 times it is 0


class TokenLogProbs(NamedTuple):
    """What `token_log_probs` returns, nats, each `(*batch)`, in float32 at least.

    Attributes:
      log_probs: of the targets.
      entropy: of the distribution over the vocabulary.
      logsumexp: of the logits (for a z-loss, or a check on their scale).
    """

    log_probs: Leaf
    entropy: Leaf
    logsumexp: Leaf


class HeadPlan(NamedTuple):
    """How a head is computed: what `head_plan` returns.

    Attributes:
      mode: "recompute", "cached" or "reference".
      vocab_block: words whose logits exist at a time.
      token_block: tokens, likewise; masked tokens are left out in units of it.
    """

    mode: str
    vocab_block: int
    token_block: int


class Sums(NamedTuple):
    """Of a token's logits z so far, relative to their maximum."""

    top: jax.Array
    total: jax.Array  # of e^(z - top)
    moment: jax.Array  # of e^(z - top) (z - top)
    target: jax.Array  # z of the target


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
      unembed: W, `(vocab, d)` as tied embeddings are, in hidden's dtype.
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
      vocab_block, token_block: sizes of a block of logits; None: by platform.
      cache_bytes: the most that "auto" may keep, per device.
      vocab_axis: mesh axis (or axes) that unembed's words are sharded over. Explicit
        axes are seen without it.
      token_spec: how the tokens are sharded, an entry an axis of `targets`, where
        the mesh's axes are Auto. Inside `shard_map` leave it out.

    Returns:
      `TokenLogProbs(log_probs, entropy, logsumexp)`, each `(*batch)`.

    Raises:
      TypeError: an array is of the wrong kind, or hidden and unembed differ in dtype.
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
    plan(1, 1, 1)  # its errors come first
    check_head(fn, hidden, unembed, targets, bias, vocab_last)
    dtype = _checks.wide(hidden)
    like = jax.ShapeDtypeStruct(targets.shape, dtype)
    temperature = _checks.per_step(
        fn, "temperature", temperature, "(0, inf)", targets=like
    )
    if softcap is not None:
        softcap = _checks.number(fn, "softcap", softcap, "(0, inf)", dtype)
    keep = _checks.valid(fn, mask, targets=targets)
    vocab_dim = 1 if vocab_last else 0
    shards = _mesh.shards(fn, targets, unembed, vocab_dim, vocab_axis, token_spec)

    def on_shard(axes, tokens, words, rest):
        (unembed, _), (bias, _) = words
        return _on_shard(plan, axes, *tokens, unembed, bias, *rest, vocab_last)

    tokens = hidden, targets, keep, temperature
    words = [(unembed, vocab_dim), (bias, 0)]
    if shards is None:
        return on_shard(_mesh.names(vocab_axis), tokens, words, (softcap,))
    run = partial(on_shard, shards.words)
    return shards.run(run, tokens, words, (softcap,), "tokens")


def head_plan(
    num_tokens: int,
    vocab_size: int,
    hidden_size: int,
    *,
    masked: bool = False,
    mode: Mode = "auto",
    vocab_block: int | None = None,
    token_block: int | None = None,
    cache_bytes: int = 2**30,
    platform: str | None = None,
) -> HeadPlan:
    """How `token_log_probs` goes about a head of this size, on one device.

    Args:
      num_tokens: on this device, all leading axes together.
      vocab_size: on this device.
      hidden_size: d.
      masked: whether there is a mask.
      mode, vocab_block, token_block, cache_bytes: as there.
      platform: "cpu", "gpu" or "tpu"; None: JAX's default.

    Returns:
      `HeadPlan(mode, vocab_block, token_block)`.

    Raises:
      TypeError: a size is not an integer.
      ValueError: a size is below 1, or there is no such mode.

    Example:
      >>> import jaxppo
      >>> jaxppo.head_plan(8192, 151936, 4096, platform="gpu")
      HeadPlan(mode='recompute', vocab_block=4096, token_block=4096)
    """
    fn = "head_plan"
    _checks.count(fn, "cache_bytes", cache_bytes)
    for name, block in [("vocab_block", vocab_block), ("token_block", token_block)]:
        if block is not None:
            _checks.count(fn, name, block)
    if mode not in (modes := ("auto", "recompute", "cached", "reference")):
        raise ValueError(f"{fn}: `mode` = {mode!r}; expected one of {modes}.")
    on_cpu = (platform or jax.default_backend()) == "cpu"
    if mode == "auto":
        # Where d is small, a product costs less than its result's way to memory.
        worth = hidden_size >= (512 if on_cpu else 1)
        fits = 4 * num_tokens * vocab_size <= cache_bytes
        mode = "cached" if worth and fits else "recompute"
    if on_cpu:  # a block of 2 MiB to 4 MiB stays in the processor's cache
        tokens, words = 1024, 512
    else:
        tokens, words = (2048 if masked else 4096), 4096
    return HeadPlan(
        mode,
        min(vocab_block or words, vocab_size),
        min(token_block or tokens, num_tokens),
    )


def check_head(
    fn: str,
    hidden: Any,
    unembed: Any,
    targets: Any,
    bias: Any,
    vocab_last: bool,
    prefix: str = "",
) -> None:
    """Raises if the arrays of a head do not fit each other."""
    h, w, b = (prefix + name for name in ("hidden", "unembed", "bias"))
    _checks.floating(fn, **{h: hidden, w: unembed})
    form = "(d, vocab)" if vocab_last else "(vocab, d)"
    if hidden.ndim < 1 or unembed.ndim != 2 or not unembed.size:
        raise ValueError(
            f"{fn}: `{h}` has shape {hidden.shape} and `{w}` {unembed.shape}; expected "
            f"(*batch, d) and {form}."
        )
    d, vocab = hidden.shape[-1], unembed.shape[1 if vocab_last else 0]
    if unembed.shape != ((d, vocab) if vocab_last else (vocab, d)):
        turned = unembed.shape[1 if vocab_last else 0] == d
        fix = f"pass `vocab_last={not vocab_last}`" if turned else f"d is {d} here"
        raise ValueError(
            f"{fn}: `{w}` has shape {unembed.shape}, but `{h}` has shape "
            f"{hidden.shape}; expected {form}: {fix}."
        )
    if hidden.dtype != unembed.dtype:
        raise TypeError(
            f"{fn}: `{h}` is {hidden.dtype}, but `{w}` is {unembed.dtype}; cast one, "
            f"such as `{w}.astype({h}.dtype)`."
        )
    if targets is not None:
        _checks.integers(fn, targets=targets)
        if targets.shape != hidden.shape[:-1]:
            raise ValueError(
                f"{fn}: `targets` has shape {targets.shape}, but `{h}` has shape "
                f"{hidden.shape}; pass shape {hidden.shape[:-1]}, an index per token."
            )
    if bias is not None:
        _checks.floating(fn, **{b: bias})
        if bias.shape != (vocab,):
            raise ValueError(
                f"{fn}: `{b}` has shape {bias.shape}; pass shape {(vocab,)}, an entry "
                "per word."
            )


def make_head(
    hidden: Array,
    unembed: Array,
    bias: Array | None,
    softcap: Array | None,
    temperature: Array,
    keep: Array,
    vocab_last: bool,
) -> Head:
    """The head of tokens in a row, constants detached; 1 as temperature off-mask."""
    inverse = 1 / jnp.where(keep, temperature, 1)
    softcap, inverse = jax.lax.stop_gradient((softcap, inverse))
    return Head(
        hidden.reshape(-1, hidden.shape[-1]),
        unembed,
        bias,
        softcap,
        inverse.ravel(),
        keep.ravel(),
        vocab_last,
    )


def _on_shard(
    plan,
    vocab_axes,
    hidden,
    targets,
    keep,
    temperature,
    unembed,
    bias,
    softcap,
    vocab_last,
) -> TokenLogProbs:
    """Of this device's tokens, and words."""
    shape = targets.shape
    vocab = unembed.shape[1 if vocab_last else 0]
    for name in vocab_axes:
        vocab *= jax.lax.axis_size(name)
    inside = _inside(targets, vocab)
    valid = inside if keep is None else inside & keep
    d = hidden.shape[-1]
    if not targets.size:
        empty = jnp.zeros(shape, temperature.dtype)
        return TokenLogProbs(empty, empty, empty)
    targets = jnp.where(inside, targets, 0).astype(jnp.int32).ravel()
    head = make_head(hidden, unembed, bias, softcap, temperature, valid, vocab_last)
    valid = valid.ravel()
    axes = _mesh.varies(head, targets, valid)
    targets, valid = _mesh.varying((targets, valid), axes - set(vocab_axes))
    head = _mesh.varying(head, axes | set(vocab_axes))
    how = plan(len(valid), head.vocab_size, d, masked=keep is not None)
    if how.mode == "reference":
        out = _reference(head, targets, vocab_axes)
    else:
        compact = keep is not None and how.token_block < len(valid)
        out = _streamed(Setup(how, compact, vocab_axes), head, targets, valid)
    return TokenLogProbs(*(jnp.where(valid, x, 0).reshape(shape) for x in out))


def _inside(targets: jax.Array, vocab: int) -> jax.Array:
    last = min(vocab - 1, jnp.iinfo(targets.dtype).max)  # int8 ends before 50,000
    return (targets >= 0) & (targets <= last)


def _reference(head, targets, vocab_axes) -> TokenLogProbs:
    """Plain code, differentiable in every way."""
    z = head.tokens(0, len(targets)).logits()
    targets = local(targets, head.vocab_size, vocab_axes)
    add = lambda x: jax.lax.psum(x, vocab_axes) if vocab_axes else x
    top = jax.lax.stop_gradient(jnp.max(z, 1))
    top = jax.lax.pmax(top, vocab_axes) if vocab_axes else top
    shifted = z - top[:, None]
    total = add(jnp.sum(jnp.exp(shifted), 1))
    finite = jnp.where(jnp.isneginf(shifted), 0, shifted)
    moment = add(jnp.sum(jnp.exp(shifted) * finite, 1))
    hit, chosen = column(z, targets)
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
    slope = slope_of(
        *jax.tree.map(gather, (out, TokenLogProbs(*cotangents))),
        gather(targets),
        head,
        setup.vocab_axes,
    )
    dh, dw, db = _stream.backward(
        (head if order is None else order.of(head),),
        Blocks(*setup.plan[1:]),
        slope,
        count=None if order is None else order.count,
        kept=kept,
    )
    if order is not None:
        dh = jnp.where(valid[:, None], dh[order.place], 0)
    dh = dh.astype(head.hidden.dtype)
    db = None if db is None else db.astype(head.bias.dtype)
    none = dict(softcap=None, inv_temperature=None, live=None)
    grads = dataclasses.replace(head, hidden=dh, unembed=dw, bias=db, **none)
    return grads, None, None


_streamed.defvjp(_streamed_fwd, _streamed_bwd)


def _fwd(setup, head, targets, valid, *, keep):
    order = _order(setup, valid)
    if order is not None:
        targets = order.gather(targets)
    sums, kept = _stream.forward(
        (head if order is None else order.of(head),),
        Blocks(*setup.plan[1:]),
        absorb_into(targets, head, setup.vocab_axes),
        zero_sums(len(targets), head.inv_temperature.dtype),
        count=None if order is None else order.count,
        keep=keep,
    )
    out = from_sums(merged(sums, setup.vocab_axes))
    if order is not None:
        out = jax.tree.map(lambda x: jnp.where(valid, x[order.place], 0), out)
    return out, kept


def _order(setup, valid):
    return _stream.ordered(valid, setup.plan.token_block) if setup.compact else None


def zero_sums(n: int, dtype: Any) -> Sums:
    """Of no words yet."""
    zero = jnp.zeros(n, dtype)
    return Sums(jnp.full(n, LOWEST, dtype), zero, zero, zero)


def absorb_into(targets: jax.Array, head: Head, vocab_axes: tuple[str, ...]) -> Any:
    """What adds a block of logits to the sums."""
    targets = local(targets, head.vocab_size, vocab_axes)

    def absorb(sums, zs, row, start):
        (z,) = zs
        top = jnp.maximum(sums.top, jnp.max(z, 1))
        x = z - top[:, None]
        x = x if head.bias is None else jnp.maximum(x, FAR)  # bias may be -inf
        e = jnp.exp(x)
        hit, chosen = column(z, _stream.rows(targets, row, len(z)) - start)
        total, moment = rescaled(sums, top)
        total, moment = total + jnp.sum(e, 1), moment + jnp.sum(e * x, 1)
        return Sums(top, total, moment, jnp.where(hit, chosen, sums.target))

    return absorb


def slope_of(
    out: TokenLogProbs,
    grads: TokenLogProbs,
    targets: jax.Array,
    head: Head,
    vocab_axes: tuple[str, ...],
) -> Any:
    """The gradient to a block of logits, from those to what is returned.

    With u = z - logsumexp: d log_prob = 1[target] - p; d entropy = -p (u + entropy);
    d logsumexp = p.
    """
    targets = local(targets, head.vocab_size, vocab_axes)
    level = grads.log_probs + grads.entropy * out.entropy - grads.logsumexp

    def slope(zs, row, start):
        (z,) = zs
        here = lambda x: _stream.rows(x, row, len(z))[:, None]
        u = z - here(out.logsumexp)
        u = u if head.bias is None else jnp.maximum(u, FAR)
        words = jax.lax.broadcasted_iota(jnp.int32, z.shape, 1)
        own = jnp.where(words == here(targets) - start, here(grads.log_probs), 0)
        return own - jnp.exp(u) * (here(level) + here(grads.entropy) * u)

    return slope


def column(z: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Whether each row's target is in this block, and its logit."""
    hit = (targets >= 0) & (targets < z.shape[1])
    place = jnp.clip(targets, 0, z.shape[1] - 1)[:, None]
    return hit, jnp.take_along_axis(z, place, 1, mode="promise_in_bounds")[:, 0]


def rescaled(sums: Sums, top: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Total and moment, relative to another maximum."""
    shift = jnp.maximum(sums.top - top, FAR)
    scale = jnp.exp(shift)
    return sums.total * scale, (sums.moment + sums.total * shift) * scale


def merged(sums: Sums, vocab_axes: tuple[str, ...]) -> Sums:
    """Of all shards of the vocabulary."""
    if not vocab_axes:
        return sums
    top = jax.lax.pmax(sums.top, vocab_axes)
    parts = (*rescaled(sums, top), sums.target)
    return Sums(top, *jax.lax.psum(parts, vocab_axes))


def from_sums(sums: Sums) -> TokenLogProbs:
    """What they come to."""
    total = jnp.where(sums.total == 0, 1, sums.total)  # of rows that were left out
    log_total = jnp.log(total)
    return TokenLogProbs(
        sums.target - sums.top - log_total,
        log_total - sums.moment / total,
        sums.top + log_total,
    )


def local(targets: jax.Array, vocab: int, vocab_axes: tuple[str, ...]) -> jax.Array:
    """Targets counted from this shard's first word."""
    if not vocab_axes:
        return targets
    return targets - jax.lax.axis_index(vocab_axes) * vocab
