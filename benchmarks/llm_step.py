"""Measure a GRPO update and its sampling: `examples/llm`, and TRL on torch.

    python benchmarks/llm_step.py --peer path/to/python    # one that has TRL
    python benchmarks/llm_step.py --quick                  # a tiny model
    python benchmarks/llm_step.py --device gpu             # ours alone, to fill it

Both get the same weights (SmolLM2-135M), prompts, completions, advantages, loss, AdamW
and float32. They take turns, each turn a process of its own (llm_turns.py), whose peak
of resident memory is counted. TRL gets each prompt once a sample, as its trainer does.
"""

import dataclasses
import functools
import importlib.util
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from typing import Any, Literal, NamedTuple

sys.path.append(str(pathlib.Path(__file__).parents[1] / "examples"))

import jax
import jax.numpy as jnp
import matplotlib
import measure
import numpy as np
import tyro
from flax import nnx
from llm import sampler, tasks, tiny, training, weights
from llm.model import Config, Llama, Training
from safetensors.numpy import load_file
from tqdm import tqdm

import jaxppo

matplotlib.use("Agg")
import matplotlib.pyplot as plt

TURN = pathlib.Path(__file__).with_name("llm_turns.py")
OURS, THEIRS = "jaxppo", "TRL"


class Size(NamedTuple):
    """Of a batch."""

    prompts: int
    samples: int
    prompt: int  # room for its tokens
    new: int
    ends: bool  # at the end of a line, as in the example's task

    def __str__(self):
        rows = f"{self.prompts} prompts x {self.samples} samples"
        return f"{rows}, {self.prompt} + {self.new} tokens"


class Method(NamedTuple):
    """How a turn is made."""

    library: Literal["jaxppo", "trl"]
    how: dict[str, Any]


def methods(size: Size, with_peer: bool) -> dict[str, Method]:
    """By name; the first of each library also samples."""
    rows = size.prompts * size.samples
    few = min(8, rows)
    ours = lambda remat: Method("jaxppo", {"remat": remat, "microbatches": 1})
    theirs = lambda rows, checkpointing=False, bf16=False: Method(
        "trl", {"rows": rows, "checkpointing": checkpointing, "bf16": bf16}
    )
    found = {OURS: ours(True)}
    if with_peer:
        found |= {f"{OURS}, no remat": ours(False)}
        found |= {
            THEIRS: theirs(rows),
            f"{THEIRS}, {few} rows a pass": theirs(few),
            f"{THEIRS}, {few} rows, checkpointing": theirs(few, True),
            f"{THEIRS}, the same in bf16 (its defaults)": theirs(few, True, True),
        }
    return found


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure, and where to write it."""

    out: pathlib.Path = pathlib.Path("runs/benchmarks/llm_step")
    """Folder of the table, the numbers and the picture."""
    peer: pathlib.Path | None = None
    """A Python that has TRL and datasets; this one, if it has them."""
    quick: bool = False
    """A tiny model: to see that it works, not for the numbers."""
    threads: int = 1
    """Of each process. CPU time is counted for one, wall time for several."""
    rounds: int = 3
    """Turns of each method; the medians count."""
    repeats: int = 2
    """Updates in a turn, after one that is not counted; the median counts."""
    device: Literal["cpu", "gpu"] = "cpu"
    """gpu: tokens/s of our update there, and the share of its products' limit."""
    only: Literal["both", "short", "long"] = "both"
    """Which batches."""


# --- side by side, on a CPU ---


def prepared(folder: pathlib.Path, source: weights.Source, size: Size) -> None:
    """The model as Hugging Face's files, and completions that it sampled, scored."""
    training = Training()
    graph, params = weights.loaded(source, training, jax.random.key(0))
    weights.export(
        *(folder / "model", source.config, training, params),
        *(source.tokenizer, source.end_ids),
    )
    problem = lambda seed, n: tasks.arithmetic(seed, n, False)
    if size.ends:
        texts = [x.prompt for x in problem("0", size.prompts)]
    else:
        lines = lambda seed: [f"{x.prompt} {x.answer}\n" for x in problem(seed, 16)]
        texts = ["".join(lines(str(i))) for i in range(size.prompts)]
    ids = [source.tokenizer.encode(text).ids[-size.prompt :] for text in texts]
    prompts, prompt_mask = sampler.padded(ids, size.prompt)
    words = range(source.tokenizer.get_vocab_size())
    line = [i for i in words if "\n" in source.tokenizer.decode([i])]

    @jax.jit
    def sample(params: Any) -> sampler.Samples:
        return sampler.generate(
            nnx.merge(graph, params),
            *(prompts, prompt_mask, jax.random.key(1)),
            num_samples=size.samples,
            max_new_tokens=size.new,
            end_ids=tuple(line) if size.ends else (),
        )

    samples = sample(params)
    groups = size.prompts, size.samples
    rewards = np.random.default_rng(0).integers(0, 2, groups).astype(np.float32)
    scored = np.ones(groups, bool)
    np.savez(
        folder / "batch.npz",
        prompts=prompts,
        prompt_mask=prompt_mask,
        completions=np.asarray(samples.tokens),
        mask=np.asarray(samples.mask),
        old_log_probs=np.asarray(samples.log_probs),
        rewards=rewards,
        scored=scored,
        advantages=np.asarray(
            jaxppo.group_advantages(rewards, scored, group_size=size.samples)
        ),
    )


def turn(
    folder: pathlib.Path, method: Method, options: Options, **more: Any
) -> dict[str, Any]:
    """What a process of its own measured."""
    here = method.library == "jaxppo" or options.peer is None
    env = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    # NPROC is XLA's: without it, its library of products uses all cores.
    names = "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NPROC"
    env |= dict.fromkeys(names, str(options.threads))
    if options.threads > 1:  # XLA takes what the machine has
        env["XLA_FLAGS"] = env["XLA_FLAGS"].replace(measure.ONE_THREAD, "")
    how = method.how | more
    how |= {"library": method.library, "threads": options.threads}
    how |= {"repeats": options.repeats}
    command = [sys.executable if here else options.peer, TURN, folder, json.dumps(how)]
    done = subprocess.run(
        list(map(str, command)), env=env, text=True, capture_output=True
    )
    if done.returncode:
        raise RuntimeError(f"{method} failed:\n{done.stderr[-3000:]}")
    measured = json.loads((folder / "turn.json").read_text())
    return measured | {"load": os.getloadavg()[0]}


def compare(
    source: weights.Source, size: Size, options: Options, with_peer: bool, bar: tqdm
) -> list[dict[str, Any]]:
    """A row a method."""
    found = methods(size, with_peer)
    firsts = {method.library: name for name, method in reversed(found.items())}
    turns: dict[str, list] = {name: [] for name in found}
    gradients: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        prepared(folder, source, size)
        with np.load(folder / "batch.npz") as file:
            counted = int(file["mask"].sum())
        for i in range(options.rounds):
            for name, method in found.items():
                bar.set_postfix_str(name)
                first = name in firsts.values()
                compared = with_peer and i == 0 and not method.how.get("bf16")
                more = {"sample": first, "gradients": compared}
                more["end_id"] = source.end_ids[0]
                turns[name].append(turn(folder, method, options, **more))
                if more["gradients"]:
                    kept = folder / "gradients" / "model.safetensors"
                    gradients[name] = load_file(kept)
                bar.update()
    clock = "cpu" if options.threads == 1 else "wall"
    middle = lambda name, *keys: statistics.median(
        functools.reduce(dict.__getitem__, keys, one) for one in turns[name]
    )
    rows = []
    for name, method in found.items():
        row = {"method": name, "update, s": middle(name, "update", clock)}
        row["tokens/s"] = counted / row["update, s"]
        row["peak, MiB"] = middle(name, "process MiB")
        row["of updates alone"] = middle(name, "update MiB")
        if name in firsts.values():
            row["sampling, s"] = middle(name, "sample", clock)
            new = size.prompts * size.samples * size.new
            row["new tokens/s"] = new / row["sampling, s"]
        if method.library == "jaxppo":
            rate = middle(name, "matmul GFLOP/s")
            needed = flops(source.config, size) / 1e9
            row["of x @ y"] = needed / row["update, s"] / rate
        rows.append(row | {"turns": turns[name]})
    if with_peer:
        best = min(
            (row for row in rows if THEIRS in row["method"] and "bf16" not in str(row)),
            key=lambda row: row["update, s"],
        )
        for row in rows:
            row["speed"] = best["update, s"] / row["update, s"]
            row["memory"] = row["peak, MiB"] / best["peak, MiB"]
        ours = gradients.pop(OURS)
        for row in rows:
            if (other := gradients.get(row["method"])) is not None:
                assert ours.keys() == other.keys()
                off = [measure.difference(ours[name], other[name]) for name in ours]
                row["gradient off by"] = max(off)
    return rows


def flops(config: Config, size: Size, each: int = 6) -> int:
    """That an update needs in products with weights: 6 each a weight and token.

    Or 8: in bfloat16 it computes the log-probs before it, too. A prompt counts once.
    What is computed again is not counted, nor is attention.
    """
    c = config
    heads = 2 * (c.num_heads + c.num_kv_heads) * c.head_dim
    layer = c.dim * (heads + 3 * c.hidden_dim)
    completions = size.prompts * size.samples * size.new
    positions = size.prompts * size.prompt + completions - size.prompts * size.samples
    return each * (
        c.num_layers * layer * positions + c.vocab_size * c.dim * completions
    )


COLUMNS = [
    *("method", "update, s", "tokens/s", "speed", "peak, MiB", "memory"),
    *("of updates alone", "of x @ y", "sampling, s", "new tokens/s", "gradient off by"),
]


def picture(path: pathlib.Path, results: dict[str, list], unit: str) -> None:
    """Time and memory of each method, a row of panels a batch."""
    height = 0.5 + sum(0.7 + 0.28 * len(rows) for rows in results.values())
    figure, axes = plt.subplots(
        len(results),
        2,
        figsize=(9, height),
        layout="constrained",
        sharey="row",
        squeeze=False,
    )
    for (left, right), (title, rows) in zip(axes, results.items(), strict=True):
        names = [row["method"] for row in rows]
        colors = ["tab:blue" if x.startswith(OURS) else "tab:gray" for x in names]
        for axis, values in [
            (left, [row["update, s"] for row in rows]),
            (right, [row["peak, MiB"] / 1024 for row in rows]),
        ]:
            bars = axis.barh(names, values, color=colors, height=0.7)
            axis.bar_label(bars, fmt="{:.3g}", padding=3, fontsize=8)
            axis.margins(x=0.12)
            axis.tick_params(labelsize=8, left=False)
            axis.spines[["top", "right", "left"]].set_visible(False)
        left.invert_yaxis()
        left.set_title(title, fontsize=9, loc="left")
    axes[-1, 0].set_xlabel(f"seconds an update, {unit}", fontsize=9)
    axes[-1, 1].set_xlabel("peak of resident memory, GiB", fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


# --- alone, on an accelerator ---

# Of Llama 3.2 1B's sizes; random, since time does not depend on the weights.
BILLION = Config(
    vocab_size=128_256,
    dim=2048,
    hidden_dim=8192,
    num_layers=16,
    num_heads=32,
    num_kv_heads=8,
    head_dim=64,
    max_len=8192,
    rope_theta=500_000.0,
    norm_eps=1e-5,
)


def alone(config: Config, size: Size, dtype: Any, rounds: int) -> dict[str, Any]:
    """A row: our update in this process; the model's arrays are drawn on the device."""
    kind = Training(dtype=dtype)
    graph, _ = weights.graph_and_shapes(config, kind)
    params = jax.jit(lambda key: nnx.state(Llama(config, kind, nnx.Rngs(key))))
    sizes = dict(prompts_per_update=size.prompts, group_size=size.samples)
    hyper = training.Hyper(num_minibatches=1, **sizes)
    ends = dict(max_new_tokens=size.new, end_ids=())
    of = training.trainer(graph, hyper, dtype=dtype, **ends)
    keys = jax.random.split(jax.random.key(0), 4)
    state = jax.jit(of.init)(params(keys[0]))
    groups, c = (size.prompts, size.samples), config
    ids = lambda key, *shape: jax.random.randint(key, shape, 0, c.vocab_size)
    batch = {
        "prompts": ids(keys[1], size.prompts, size.prompt),
        "prompt_mask": jnp.ones((size.prompts, size.prompt), bool),
        "completions": ids(keys[2], *groups, size.new),
        "mask": jnp.ones((*groups, size.new), bool),
        "old_log_probs": jnp.full((*groups, size.new), -np.log(c.vocab_size)),
        "rewards": jax.random.uniform(keys[3], groups),
        "scored": jnp.ones(groups, bool),
    }
    learn = jax.jit(of.update, donate_argnums=0)
    x = jnp.ones((4 * c.dim, 4 * c.dim), dtype)
    product = jax.jit(jnp.matmul)

    def update() -> Any:
        nonlocal state
        state, metrics = learn(state, nnx.State({}), None, batch, keys[0])
        return metrics

    calls = {"update": update, "x @ y": functools.partial(product, x, x)}
    best = measure.race(calls, rounds, tqdm(disable=True))
    needed = flops(config, size, 6 if dtype == jnp.float32 else 8)
    reached = needed / best["update"]
    limit = 2 * len(x) ** 3 / best["x @ y"]
    tokens = size.prompts * size.samples * size.new
    return {
        "method": f"{OURS}, {jnp.dtype(dtype).name}",
        "update, s": best["update"],
        "tokens/s": tokens / best["update"],
        "TFLOP/s": reached / 1e12,
        "x @ y, TFLOP/s": limit / 1e12,
        "of x @ y": reached / limit,
    }


def main(options: Options) -> None:
    """Tables, then the picture."""
    o = options
    o.out.mkdir(parents=True, exist_ok=True)
    if o.quick or o.device == "gpu":
        if o.device == "gpu" and not measure.on_gpu():
            raise SystemExit("--device gpu: JAX sees none.")
        size = Size(2, 2, 16, 16, False) if o.quick else Size(16, 8, 512, 512, False)
        config, dtype = tiny.CONFIG, jnp.float32
        if not o.quick:
            config, dtype = BILLION, jnp.bfloat16
        row = alone(config, size, dtype, o.rounds)
        text = f"{measure.machine()}\n\n{size}\n\n{measure.table([row], list(row))}"
        print(text)
        made = measure.write(o.out, "llm_alone", text, row)
        if o.device == "gpu":
            print("Written:", *made, sep="\n  ")
            return
    has_trl = importlib.util.find_spec("trl") is not None and not o.quick
    with_peer = o.peer is not None or has_trl
    sizes = {"short": Size(8, 8, 32, 4, True), "long": Size(4, 4, 128, 128, False)}
    source = tiny.source() if o.quick else weights.read(weights.smollm2())
    if o.quick:
        sizes, o = {"short": Size(4, 4, 64, 4, True)}, dataclasses.replace(o, rounds=1)
    chosen = [size for name, size in sizes.items() if o.only in ("both", name)]
    unit = "CPU time of one thread"
    if o.threads > 1:
        unit = f"wall time, {o.threads} threads"
    made_of = f"{o.rounds} turns of {o.repeats} updates"
    text = [f"{jax.devices()[0].device_kind}, JAX {jax.__version__}; {unit};"]
    text += [f"medians of {made_of}. speed, memory: beside {THEIRS}'s fastest float32."]
    if not with_peer:
        text += ["Without TRL: give a Python that has it by --peer."]
    results = {}
    turns = o.rounds * sum(len(methods(size, with_peer)) for size in chosen)
    with tqdm(total=turns, unit="turn") as bar:
        for size in chosen:
            rows = results[str(size)] = compare(source, size, o, with_peer, bar)
            loads = [x["load"] for row in rows for x in row["turns"]]
            text += [f"\n{size}; load {min(loads):.1f} to {max(loads):.1f}\n"]
            columns = [c for c in COLUMNS if any(c in row for row in rows)]
            text += [measure.table(rows, columns)]
            bar.write("\n".join(text[-2:]))
            made = measure.write(o.out, "llm_step", "\n".join(text), results)
    path = o.out / "llm_step.png"
    picture(path, results, unit)
    print("Written:", *made, path, sep="\n  ")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
