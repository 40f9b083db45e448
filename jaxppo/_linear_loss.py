"""A scalar loss on a language model's head, its gradients made in the forward pass."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Integer

from . import _checks, _head_math, _mesh, _stream
from ._accumulate import is_metric, loss_and_metrics
from ._head_plan import check_options, head_plan
from ._stream import Blocks
from ._types import Max, Mean, Metric, RowMask, Scalar


class Setup(NamedTuple):
    """What is static."""

    loss_fn: Callable
    items: int  # along the first axis, at a time
    blocks: Blocks
    vocab_axes: tuple[str, ...]


def linear_policy_loss(
    hidden: Float[Array, "*b d"],
    unembed: Float[Array, "v w"],
    batch: Any,
    loss_fn: Callable,
    *,
    targets: Integer[Array, "*b"],
    mask: RowMask | None = None,
    temperature: Float[Array, "*#b"] | Scalar = 1.0,
    bias: Float[Array, " k"] | None = None,
    softcap: Scalar | None = None,
    vocab_last: bool = False,
    items: int | None = None,
    vocab_block: int | None = None,
    token_block: int | None = None,
    cache_bytes: int = 2**30,
    vocab_axis: _mesh.AxisName | None = None,
    token_spec: PartitionSpec | None = None,
) -> tuple[Mean, dict[str, Metric]]:
    """A loss of `token_log_probs`, with each logit made once: no recomputing.

    The same numbers as `loss_fn(token_log_probs(hidden, unembed, targets), batch)`. As
    the loss is a sum over items, a few items' logits are enough to know those items'
    gradients, which are made at once, in the forward pass (3 products of matrices
    instead of 4); only they are kept for the backward pass.

    Args:
      hidden: `(*batch, d)`; an item is an entry of the first axis: a sequence, or, for
        a loss without sequences, a token of `(tokens, d)`.
      unembed: `(vocab, d)`.
      batch: any pytree of arrays with the same first axis; constant.
      loss_fn: `loss_fn(head, batch) -> (Mean, metrics)` of some of the items, with
        `head` their `TokenLogProbs`. What it closes over is constant, too: to
        differentiate by anything else, use `token_log_probs`.
      targets: as in `token_log_probs`; so are mask, temperature, bias, softcap,
        vocab_last, vocab_block, token_block, vocab_axis.
      mask: what it leaves out reaches nothing; its logits are made nevertheless.
      temperature: of the sampler.
      bias: `(vocab,)`.
      softcap: of the logits.
      vocab_last: unembed is `(d, vocab)`.
      items: how many at a time; None: as many as have logits that fit `cache_bytes`.
      vocab_block: words at a time.
      token_block: tokens at a time.
      cache_bytes: for logits, in float32. If it takes more than one turn, the
        unembedding's gradient is summed in float32 besides.
      vocab_axis: the mesh axis of the words.
      token_spec: how the items are sharded where the mesh's axes are Auto; of the
        first axis only.

    Returns:
      `(loss, metrics)`: merged over the items, undivided. The loss is differentiable
      to hidden, unembed and bias, once; metrics and counts are constant.

    Raises:
      TypeError: loss_fn does not return a `Mean` and metrics; an array is of the wrong
        kind.
      ValueError: shapes do not fit, or a number is out of range.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> def loss_fn(head, batch):
      ...     x = jaxppo.log_ratio(head.log_probs, batch["old_log_probs"])
      ...     return jaxppo.token_mean(jaxppo.clipped_surrogate(x, batch["adv"])), {}
      >>> batch = {"old_log_probs": jnp.full(2, -1.61), "adv": jnp.array([1.0, 2.0])}
      >>> hidden, unembed, targets = jnp.ones((2, 3)), jnp.zeros((5, 3)), jnp.arange(2)
      >>> loss, _ = jaxppo.linear_policy_loss(
      ...     hidden, unembed, batch, loss_fn, targets=targets)
      >>> loss.value.round(2)
      Array(-1.5, dtype=float32)
    """
    fn = "linear_policy_loss"
    plan = partial(
        head_plan,
        mode="cached",
        vocab_block=vocab_block,
        token_block=token_block,
        cache_bytes=cache_bytes,
    )
    check_options(fn, "cached", vocab_block, token_block, cache_bytes)
    if items is not None:
        _checks.count(fn, "items", items)
    _checks.function(fn, "loss_fn", loss_fn, "lambda head, batch: (mean, {})")
    _checks.integers(fn, targets=targets)
    _head_math.check_head(fn, hidden, unembed, targets, bias, vocab_last)
    if targets.ndim < 1 or not targets.size:
        raise ValueError(
            f"{fn}: `targets` has shape {targets.shape}; expected (items, *) with at "
            "least one token."
        )
    if (rows := _checks.rows(fn, batch)) != len(hidden):
        raise ValueError(
            f"{fn}: `batch` has {rows} rows, but `hidden` has shape {hidden.shape}; "
            f"both need the same items: {len(hidden)} rows."
        )
    like = jax.ShapeDtypeStruct(targets.shape, _checks.wide(hidden, unembed))
    temperature, softcap = _head_math.constants(fn, temperature, softcap, targets=like)
    keep = _checks.valid(fn, mask, targets=targets)
    vocab_dim = 1 if vocab_last else 0
    shards = _mesh.shards(
        fn, hidden, targets, unembed, vocab_dim, vocab_axis, token_spec
    )
    if shards is not None and any(shards.tokens[1:]):
        raise ValueError(
            f"{fn}: the tokens are sharded by {shards.tokens}: loss_fn would see parts "
            "of items. Shard the first axis only, or use `token_log_probs`."
        )

    def on_shard(axes, tokens, words, softcap):
        hidden, targets, keep, temperature, batch = tokens
        (unembed, _), (bias, _) = words
        valid, targets = _head_math.inside(targets, unembed.shape[vocab_dim], axes)
        valid = valid if keep is None else valid & keep
        head = _head_math.make_head(
            hidden, unembed, bias, softcap, temperature, valid, vocab_last
        )
        n, each = len(targets), math.prod(targets.shape[1:])
        fit = cache_bytes // (4 * head.vocab_size * each)
        some = min(items or max(fit, 1), n)
        how = plan(some * each, head.vocab_size, hidden.shape[-1])
        varies = _mesh.varies(head, targets, batch)
        targets, valid, batch = _mesh.varying(
            (targets, valid, batch), varies - set(axes)
        )
        head = _mesh.varying(head, varies | set(axes))
        setup = Setup(loss_fn, some, Blocks(*how[1:]), axes)
        batch = jax.lax.stop_gradient(batch)
        return _loss(setup, head, targets, valid, batch)

    tokens = hidden, targets, keep, temperature, batch
    words = [(unembed, vocab_dim), (bias, 0)]
    if shards is None:
        return on_shard(_mesh.names(vocab_axis), tokens, words, softcap)

    def whole(tokens, words, softcap):
        out = on_shard(shards.words, tokens, words, softcap)
        over = _mesh.names(shards.tokens[0])
        reduce = lambda m: m.all_reduce(over) if over else m
        return jax.tree.map(reduce, out, is_leaf=is_metric)

    return shards.run(whole, tokens, words, softcap, "sums")


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(setup, head, targets, valid, batch):
    return _over_items(setup, head, targets, valid, batch, with_grads=False)[0]


def _loss_fwd(setup, head, targets, valid, batch):
    return _over_items(setup, head, targets, valid, batch, with_grads=True)


def _loss_bwd(setup, saved, cotangents):
    head, dh, (dw, db) = saved
    scale = cotangents[0].total  # 1 / count, say
    grads = jax.tree.map(lambda g: g * scale, (dh, dw, db))
    return head.cotangent(*grads), None, None, None


_loss.defvjp(_loss_fwd, _loss_bwd)


def _over_items(setup, head, targets, valid, batch, *, with_grads):
    """`(loss, metrics)` of all items, and what the backward pass scales."""
    n, each = len(targets), math.prod(targets.shape[1:])
    dtype, axes = head.inv_temperature.dtype, setup.vocab_axes
    shared = _mesh.varies(head, targets, batch) - set(axes)

    def outcome(some, out, counts, data):
        """Of some items."""
        out = (jnp.where(counts, x.reshape(counts.shape), 0) for x in out)
        result = loss_and_metrics(setup.loss_fn, _head_math.TokenLogProbs(*out), data)
        if not isinstance(result[0], Mean):
            raise TypeError(
                "linear_policy_loss: `loss_fn` returned several terms, whose gradients "
                "would differ in scale; add them up to one `jaxppo.Mean`, or use "
                "`token_log_probs`."
            )
        result = _mesh.varying(result, shared)
        return result[0].total, jax.lax.stop_gradient(result)

    def turn(start, some, carry):
        results, dh, dw = carry
        part = head.tokens(start * each, some * each)
        cut = lambda x: _stream.rows(x, start, some)
        mine = cut(targets).ravel()
        sums, kept = _stream.forward(
            (part,),
            setup.blocks,
            _head_math.absorb_into(mine, part, axes),
            _head_math.zero_sums(len(mine), dtype),
            keep=with_grads,
        )
        out = _head_math.from_sums(_head_math.merged(sums, axes))
        of = partial(outcome, some, counts=cut(valid), data=jax.tree.map(cut, batch))
        if with_grads:
            total, pull, result = jax.vjp(of, out, has_aux=True)
            (grads,) = pull(jnp.ones_like(total))
            slope = _head_math.slope_of(out, grads, mine, part, axes)
            more = _stream.backward((part,), setup.blocks, slope, kept=kept, into=dw)
            dh, dw = _stream.put(dh, more.hidden, start * each), more[1:]
        else:
            _, result = of(out)
        merge = lambda old, new: old + new
        results = jax.tree.map(merge, results, result, is_leaf=is_metric)
        return results, dh, dw

    first = jax.eval_shape(
        lambda: outcome(
            setup.items,
            _head_math.TokenLogProbs(*[jnp.zeros(setup.items * each, dtype)] * 3),
            valid[: setup.items],
            jax.tree.map(lambda x: x[: setup.items], batch),
        )[1]
    )
    results = jax.tree.map(_neutral, first, is_leaf=is_metric)
    results = _mesh.varying(results, shared)
    dh = dw = None
    if with_grads:
        zeros = lambda x: jnp.zeros(x.shape, dtype)
        dh = zeros(head.hidden)
        dw = zeros(head.unembed), jax.tree.map(zeros, head.bias)
        dh, dw = _mesh.varying((dh, dw), _mesh.varies(head))
    results, dh, dw = _stream.loop(n, setup.items, turn, (results, dh, dw))
    return results, (head, dh, dw)


def _neutral(metric: Metric) -> Metric:
    """What changes nothing when it is merged."""
    if isinstance(metric, Mean):
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), metric)
    far = -jnp.inf if isinstance(metric, Max) else jnp.inf
    return type(metric)(jnp.full(metric.value.shape, far, metric.value.dtype))
