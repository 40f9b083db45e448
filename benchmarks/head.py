"""Measure the head: jaxppo, plain JAX and torch libraries, the same loss, in one run.

    python benchmarks/head.py            # half an hour, 8 GB
    python benchmarks/head.py --quick    # small sizes, two minutes

The loss is a sum over tokens of advantage * log-prob - 0.01 * entropy. Peers are those
of verl, TRL, Liger and prime-rl that are installed (or on PYTHONPATH).
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import measure
import peers
import pictures
import tyro
from tqdm import tqdm

import jaxppo

NAIVE = "naive jit, float32 logits"
OURS = "jaxppo, recompute"
ENTROPY_COEF = 0.01
MIB = 2**20


class Size(NamedTuple):
    """Of a head."""

    tokens: int
    hidden: int
    vocab: int

    def __str__(self):
        return f"N = {self.tokens}, D = {self.hidden}, V = {self.vocab}"


class Data(NamedTuple):
    """Arrays of tokens."""

    targets: jax.Array
    advantages: jax.Array
    mask: jax.Array


class Method(NamedTuple):
    """A loss of hidden, unembed and data; products of matrices (2NDV each) it takes."""

    loss: Callable
    products: int
    masked: bool = False


def draw(size: Size, dtype, keep: float = 0.25) -> tuple[jax.Array, jax.Array, Data]:
    """Logits of variance 1; of the mask, a quarter counts."""
    keys = jax.random.split(jax.random.key(0), 5)
    hidden = jax.random.normal(keys[0], (size.tokens, size.hidden), dtype)
    unembed = jax.random.normal(keys[1], (size.vocab, size.hidden), dtype)
    data = Data(
        jax.random.randint(keys[2], (size.tokens,), 0, size.vocab),
        jax.random.normal(keys[3], (size.tokens,)),
        jax.random.uniform(keys[4], (size.tokens,)) < keep,
    )
    return hidden, unembed * size.hidden**-0.5, data


def per_token(log_probs, entropy, advantages):
    """The loss of a token."""
    bonus = 0 if entropy is None else ENTROPY_COEF * entropy
    return advantages * log_probs - bonus


def naive(hidden, unembed, targets):
    """What everyone writes first."""
    contract = (((1,), (1,)), ((), ()))
    logits = jax.lax.dot_general(
        hidden, unembed, contract, preferred_element_type=jnp.float32
    )
    log_p = jax.nn.log_softmax(logits)
    log_probs = jnp.take_along_axis(log_p, targets[:, None], 1)[:, 0]
    return log_probs, -jnp.sum(jnp.exp(log_p) * log_p, -1)


def rematerialised(hidden, unembed, targets, chunk=1024):
    """Chunks of tokens, made again in the backward pass, as Tunix does."""
    one = jax.checkpoint(lambda x: naive(x[0], unembed, x[1]))
    chunk = min(chunk, len(hidden))
    split = lambda x: x.reshape(-1, chunk, *x.shape[1:])
    out = jax.lax.map(one, (split(hidden), split(targets)))
    return jax.tree.map(jnp.ravel, out)


def ours(mode, platform, masked, hidden, unembed, data, token_block=None):
    """`token_log_probs`; with the plan of a platform that need not be this one."""
    sizes = *hidden.shape[:1], *unembed.shape
    how = dict(mode=mode, token_block=token_block, platform=platform)
    plan = jaxppo.head_plan(*sizes, masked=masked, **how)
    mask = data.mask if masked else None
    out = jaxppo.token_log_probs(
        hidden, unembed, data.targets, mask=mask, **plan._asdict()
    )
    return jnp.sum(per_token(out.log_probs, out.entropy, data.advantages))


def in_forward(hidden, unembed, data):
    """`linear_policy_loss`, its items tokens."""

    def loss_fn(head, advantages):
        x = per_token(head.log_probs, head.entropy, advantages)
        return jaxppo.token_sum(x), {}

    loss, _ = jaxppo.linear_policy_loss(
        hidden, unembed, data.advantages, loss_fn, targets=data.targets
    )
    return loss.value


def plain(head, hidden, unembed, data):
    """The loss on a head that knows no mask."""
    return jnp.sum(per_token(*head(hidden, unembed, data.targets), data.advantages))


def methods(platform: str | None = None) -> dict[str, Method]:
    """In JAX."""
    of = lambda mode, masked=False: functools.partial(ours, mode, platform, masked)
    return {
        NAIVE: Method(functools.partial(plain, naive), 3),
        "re-materialised, 1024 tokens": Method(
            functools.partial(plain, rematerialised), 4
        ),
        OURS: Method(of("recompute"), 4),
        "jaxppo, cached": Method(of("cached"), 3),
        "jaxppo, linear_policy_loss": Method(in_forward, 3),
        "jaxppo, recompute, 75 % masked": Method(of("recompute", True), 4, True),
        "the same, token_block 256": Method(
            functools.partial(of("recompute", True), token_block=256), 4, True
        ),
        "jaxppo, cached, 75 % masked": Method(of("cached", True), 3, True),
    }


def in_torch(head, arrays):
    """Its loss, and its loss with gradients, as functions of nothing."""
    import numpy as np
    import torch

    hidden, unembed, (targets, advantages, _) = jax.tree.map(
        lambda x: torch.from_numpy(np.array(x)), arrays
    )
    targets = targets.long()

    def both():
        ends = hidden.detach().requires_grad_(), unembed.detach().requires_grad_()
        value = per_token(*head(*ends, targets), advantages).sum()
        return value.detach(), torch.autograd.grad(value, ends)

    def forward():
        with torch.no_grad():
            return per_token(*head(hidden, unembed, targets), advantages).sum()

    return both, forward


def compare(size: Size, dtype, rounds: int, found: dict, bar) -> list[dict]:
    """Rows of the table of one size."""
    arrays = draw(size, dtype)
    hidden, unembed, data = arrays
    rows, both, forward, expected = {}, {}, {}, {}

    def truth(masked: bool, entropy: bool):
        """The naive loss and its gradients, on the same terms."""
        if (masked, entropy) not in expected:
            weigh = data.mask if masked else jnp.ones_like(data.mask)

            def loss(hidden, unembed):
                log_probs, h = naive(hidden, unembed, data.targets)
                h = h if entropy else None
                return jnp.sum(weigh * per_token(log_probs, h, data.advantages))

            known = jax.jit(jax.value_and_grad(loss, (0, 1)))(hidden, unembed)
            expected[masked, entropy] = known
        return expected[masked, entropy]

    def row(name, out, masked, entropy, **more):
        (value, grads), (known, known_grads) = out, truth(masked, entropy)
        off = [abs(float(value) / float(known) - 1)]
        off += [measure.difference(*x) for x in zip(grads, known_grads, strict=True)]
        note = "yes" if entropy else "no"
        rows[name] = {"method": name, "entropy gradient": note, "off by": max(off)}
        rows[name] |= more

    for name, method in methods().items():
        bar.set_postfix_str(f"{name}, compiled")
        whole = jax.jit(jax.value_and_grad(method.loss, (0, 1))).lower(*arrays)
        alone = jax.jit(method.loss).lower(*arrays)
        whole, alone = whole.compile(), alone.compile()
        both[name] = functools.partial(whole, *arrays)
        forward[name] = functools.partial(alone, *arrays)
        row(
            name,
            both[name](),
            *(method.masked, True),
            temporaries=whole.memory_analysis().temp_size_in_bytes / MIB,
            products=method.products,
        )
    for name, head in found.items():
        bar.set_postfix_str(name)
        both[name], forward[name] = in_torch(head, arrays)
        entropy = head(*in_torch_small())[1] is not None
        value, grads = both[name]()
        row(name, (value, [g.numpy() for g in grads]), False, entropy)
    expected.clear()
    times = measure.race(both, rounds, bar)
    times_forward = measure.race(forward, rounds, bar)
    for name, cells in rows.items():
        cells |= {"seconds": times[name], "forward seconds": times_forward[name]}
        cells["x naive"] = times[name] / times[NAIVE]
        cells["forward, x naive"] = times_forward[name] / times_forward[NAIVE]
        cells["recompute is x of it"] = times[OURS] / times[name]
        if "products" in cells:
            flops = 2 * cells["products"] * size.tokens * size.hidden * size.vocab
            cells["TFLOP/s"] = flops / times[name] / 1e12
            least = rows[OURS]["temporaries"]
            cells["temporaries, MiB"] = cells["temporaries"]
            cells["x ours"] = cells["temporaries"] / least
    return list(rows.values())


def in_torch_small():
    """Arrays to ask a head whether it knows entropy."""
    import torch

    return torch.zeros(2, 4), torch.zeros(3, 4), torch.zeros(2, dtype=torch.long)


COLUMNS = [
    *("method", "x naive", "forward, x naive", "recompute is x of it"),
    *("temporaries, MiB", "x ours", "entropy gradient", "off by"),
]


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure, and where to write it."""

    out: pathlib.Path = pathlib.Path("runs/benchmarks/head")
    """Folder of the table, the numbers and the pictures."""
    quick: bool = False
    """Small sizes: to see that it works, not for the numbers."""
    rounds: int = 4
    """Turns of each method; the best counts."""
    tables: bool = True
    """Measure and print the tables."""
    draw: bool = True
    """Draw the pictures."""


def sizes(quick: bool) -> list[Size]:
    """Of the tables."""
    if quick:
        return [Size(256, 64, 4000)]
    if measure.on_gpu():
        return [Size(8192, 4096, 151_936)]
    return [Size(1024, 256, 32_000), Size(1024, 256, 128_256), Size(1024, 1024, 32_000)]


def main(options: Options) -> None:
    """Tables, then pictures."""
    options.out.mkdir(parents=True, exist_ok=True)
    made = []
    dtype = jnp.bfloat16 if measure.on_gpu() else jnp.float32
    if options.tables:
        found, missing = ({}, {}) if measure.on_gpu() else peers.heads()
        for name, why in missing.items():
            print(f"Without {name}: {why}")
        results, columns = {}, COLUMNS + ["TFLOP/s"] * measure.on_gpu()
        how = f"{jnp.dtype(dtype).name}; best of {options.rounds} rounds"
        text = [f"{measure.machine()}, {how}."]
        turns = 2 * options.rounds * len(methods() | found)
        with tqdm(total=turns * len(sizes(options.quick)), unit="turn") as bar:
            for size in sizes(options.quick):
                rows = compare(size, dtype, options.rounds, found, bar)
                results[str(size)] = rows
                text.append(f"\n{size}\n\n{measure.table(rows, columns)}")
                bar.write(text[-1])
        made += measure.write(options.out, "table", "\n".join(text), results)
    if options.draw:
        made += pictures.draw(options, methods, draw, (Size, Data))
    print("Written:", *made, sep="\n  ")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
