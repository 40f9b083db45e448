"""The head of a language model, streamed: its logits exist one block at a time.

Blocks of words are the outer loop, so that each block of the unembedding's gradient is
final when its turn ends, and is written once; blocks of tokens are the inner one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from . import _checks, _mesh
from ._types import Leaf


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Head:
    """Makes logits: softcap(hidden @ unembed.T + bias) * inv_temperature."""

    hidden: Leaf  # (n, d)
    unembed: Leaf  # (v, d), or (d, v)
    bias: Leaf | None  # (v,)
    softcap: Leaf | None  # ()
    inv_temperature: Leaf  # (n,), in the dtype to compute in
    live: Leaf  # (n,): whether a token counts; the others' hidden may be anything
    vocab_last: bool = dataclasses.field(metadata=dict(static=True))

    @property
    def vocab_axis(self) -> int:
        """Of the unembedding."""
        return 1 if self.vocab_last else 0

    @property
    def vocab_size(self) -> int:
        """On this shard."""
        return self.unembed.shape[self.vocab_axis]

    def words(self, start: Any, size: int) -> Head:
        """The head of some of its words."""
        unembed = rows(self.unembed, start, size, self.vocab_axis)
        bias = None if self.bias is None else rows(self.bias, start, size)
        return dataclasses.replace(self, unembed=unembed, bias=bias)

    def tokens(self, start: Any, size: int) -> Head:
        """The head on some of its tokens."""
        hidden, inverse, live = (
            rows(x, start, size) for x in (self.hidden, self.inv_temperature, self.live)
        )
        hidden = jnp.where(live[:, None], hidden, 0)
        return dataclasses.replace(
            self, hidden=hidden, inv_temperature=inverse, live=live
        )

    def operands(self) -> tuple[jax.Array, jax.Array]:
        """Hidden and unembedding in one dtype."""
        x, w = self.hidden, self.unembed
        one = x.dtype if x.dtype == w.dtype else _checks.wide(x, w)
        return x.astype(one), w.astype(one)

    def logits(self) -> jax.Array:
        """All of them, `(n, v)`."""
        dtype = self.inv_temperature.dtype
        z = dot(*self.operands(), 1, 1 - self.vocab_axis, dtype)
        if self.bias is not None:
            z = z + self.bias.astype(dtype)[None, :]
        if self.softcap is not None:
            forbidden = jnp.isneginf(z)  # by the bias: it stays so
            z = self.softcap * jnp.tanh(z / self.softcap)
            z = z if self.bias is None else jnp.where(forbidden, -jnp.inf, z)
        return z * self.inv_temperature[:, None]

    def pull(self, z: jax.Array, dz: jax.Array) -> Grads:
        """Gradients, from those to the logits."""
        dtype, inverse = dz.dtype, self.inv_temperature[:, None]
        dz = dz * inverse
        if self.softcap is not None:
            slope = 1 - (z / (inverse * self.softcap)) ** 2
            dz = dz * jnp.where(jnp.isneginf(z), 0, slope)
        bias = None if self.bias is None else jnp.sum(dz, 0)
        x, w = self.operands()
        if x.dtype == jnp.float16:  # gradients would be out of its range
            x, w = x.astype(dtype), w.astype(dtype)
        dz = dz.astype(x.dtype)  # so that both products run at the operands' speed
        dw = dot(x, dz, 0, 0, dtype) if self.vocab_last else dot(dz, x, 0, 0, dtype)
        return Grads(dot(dz, w, 1, self.vocab_axis, dtype), dw, bias)

    def cotangent(self, hidden: Any, unembed: Any, bias: Any) -> Head:
        """Gradients as JAX wants them: in their arrays' dtypes, None for constants."""
        return dataclasses.replace(
            self,
            hidden=hidden.astype(self.hidden.dtype),
            unembed=unembed.astype(self.unembed.dtype),
            bias=None if self.bias is None else bias.astype(self.bias.dtype),
            softcap=None,
            inv_temperature=None,
            live=None,
        )


class Grads(NamedTuple):
    """To a head's arrays."""

    hidden: jax.Array
    unembed: jax.Array
    bias: jax.Array | None


class Blocks(NamedTuple):
    """How large they are; static."""

    vocab: int
    tokens: int


def rows(x: jax.Array, start: Any, size: int, axis: int = 0) -> jax.Array:
    """A slice of an array."""
    return jax.lax.dynamic_slice_in_dim(x, start, size, axis)


def put(x: jax.Array, part: jax.Array, start: Any, axis: int = 0) -> jax.Array:
    """The array with a slice of it replaced."""
    return jax.lax.dynamic_update_slice_in_dim(x, part.astype(x.dtype), start, axis)


def dot(x: jax.Array, y: jax.Array, over_x: int, over_y: int, dtype: Any) -> jax.Array:
    """The product of two matrices over an axis of each, accumulated in dtype."""
    contract = (((over_x,), (over_y,)), ((), ()))
    return jax.lax.dot_general(x, y, contract, preferred_element_type=dtype)


def loop(n: int, size: int, body: Callable, carry: Any, count: Any = None) -> Any:
    """`carry = body(start, size, carry)` over n rows, the last block maybe smaller.

    With a `count` (traced; n is then a multiple of size), over the first `count` only.
    """
    turn = lambda i, carry: body(jnp.asarray(i, jnp.int32) * size, size, carry)
    if count is not None:
        return jax.lax.fori_loop(0, (count + size - 1) // size, turn, carry)
    size = min(size, n)
    whole, rest = divmod(n, size)
    if whole == 1:
        carry = body(0, size, carry)
    else:
        carry = jax.lax.fori_loop(0, whole, turn, carry)
    return body(whole * size, rest, carry) if rest else carry


def forward(
    heads: tuple[Head, ...],
    blocks: Blocks,
    absorb: Callable,
    stats: Any,
    *,
    count: jax.Array | None = None,
    keep: bool = False,
) -> tuple[Any, jax.Array | None]:
    """Statistics of the logits of heads side by side, a row a token.

    `absorb(stats, zs, row, start)` adds the logits of a block, whose first token is
    `row` and first word `start`, to those tokens' statistics. `keep`: the first head's
    logits are returned, too.
    """
    n, v = len(heads[0].hidden), heads[0].vocab_size
    kept = jnp.zeros((n, v), heads[0].inv_temperature.dtype) if keep else None
    stats, kept = _mesh.varying((stats, kept), _mesh.varies(heads, stats))

    def of_words(start, size, carry):
        some = [head.words(start, size) for head in heads]

        def of_tokens(row, size, carry):
            stats, kept = carry
            zs = [head.tokens(row, size).logits() for head in some]
            here = jax.tree.map(lambda x: rows(x, row, size), stats)
            here = absorb(here, zs, row, start)
            stats = jax.tree.map(lambda x, part: put(x, part, row), stats, here)
            if kept is not None:
                kept = jax.lax.dynamic_update_slice(
                    kept, zs[0], (jnp.int32(row), jnp.int32(start))
                )
            return stats, kept

        return loop(n, blocks.tokens, of_tokens, carry, count)

    return loop(v, blocks.vocab, of_words, (stats, kept))


def backward(
    heads: tuple[Head, ...],
    blocks: Blocks,
    slope: Callable,
    *,
    count: jax.Array | None = None,
    kept: jax.Array | None = None,
    into: tuple[jax.Array, jax.Array | None] | None = None,
) -> Grads:
    """Gradients to the first head, in the dtype to compute in but for the unembedding.

    `slope(zs, row, start)` is the gradient to a block of its logits. `into`: earlier
    gradients to the unembedding and the bias, to which these are added.
    """
    head = heads[0]
    n, v, axis = len(head.hidden), head.vocab_size, head.vocab_axis
    dtype = head.inv_temperature.dtype
    zeros = lambda x, dtype=dtype: _mesh.varying(
        jnp.zeros(x.shape, dtype), _mesh.varies(heads, kept)
    )
    if into is None:  # rounded once, as it is written
        start = zeros(head.unembed, head.unembed.dtype), jax.tree.map(zeros, head.bias)
    else:
        start = into
    once = count is None and blocks.tokens >= n

    def of_words(start, size, carry):
        some = [head.words(start, size) for head in heads]

        def of_tokens(row, height, carry):
            here = [head.tokens(row, height) for head in some]
            if kept is None:
                zs = [head.logits() for head in here]
            else:
                zs = [rows(rows(kept, row, height), start, size, 1)]
            dh, *more = here[0].pull(zs[0], slope(zs, row, start))
            dh = put(carry[0], rows(carry[0], row, height) + dh, row)
            return dh, more if once else jax.tree.map(jnp.add, carry[1], more)

        dh, whole = carry
        part = jax.tree.map(zeros, [some[0].unembed, some[0].bias])
        dh, part = loop(n, blocks.tokens, of_tokens, (dh, part), count)

        def write(whole, part, axis):
            if into is not None:
                part = part + rows(whole, start, size, axis)
            return put(whole, part, start, axis)

        return dh, tuple(
            x if x is None else write(x, more, along)
            for x, more, along in zip(whole, part, (axis, 0), strict=True)
        )

    dh, (dw, db) = loop(v, blocks.vocab, of_words, (zeros(head.hidden), start))
    return Grads(dh, dw, db)


class Order(NamedTuple):
    """The rows that count, brought to the front, in whole blocks."""

    row: jax.Array  # (padded,): the row at each place
    live: jax.Array  # (padded,): whether it counts
    place: jax.Array  # (n,): of each row, if it counts
    count: jax.Array  # ()

    def of(self, head: Head) -> Head:
        """The head on the rows that count."""
        hidden, inverse = head.hidden[self.row], head.inv_temperature[self.row]
        return dataclasses.replace(
            head, hidden=hidden, inv_temperature=inverse, live=self.live
        )

    def gather(self, x: jax.Array) -> jax.Array:
        """A number a row, in this order; 0 where none counts."""
        return jnp.where(self.live, x[self.row], 0)


def ordered(keep: jax.Array, size: int) -> Order:
    """The order that leaves out what does not count, in blocks of `size`."""
    n = len(keep)
    places = jnp.arange(-(-n // size) * size, dtype=jnp.int32)
    row = jnp.argsort(~keep, stable=True).astype(jnp.int32)
    row = jnp.pad(row, (0, len(places) - n))
    count = jnp.sum(keep, dtype=jnp.int32)
    place = jnp.maximum(jnp.cumsum(keep, dtype=jnp.int32) - 1, 0)
    return Order(row, places < count, place, count)
