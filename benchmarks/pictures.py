"""Memory and time of the head, against tokens and against vocabulary."""

import functools
import importlib
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import measure
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding
from tqdm import tqdm

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib import ticker

# Of the methods in the table, and how they are drawn.
LINES = {
    "naive jit, float32 logits": "tab:red",
    "re-materialised, 1024 tokens": "tab:orange",
    "jaxppo, recompute": "tab:blue",
}
H200 = pathlib.Path(__file__).with_name("h200.textproto")


def draw(options: Any, methods: Callable, inputs: Callable, types: tuple) -> list:
    """Both pictures; the numbers beside them."""
    size, data = types
    device, platform, kind = target()
    heads = {name: methods(platform)[name].loss for name in LINES}
    dtype = jnp.float32 if platform == "cpu" else jnp.bfloat16
    tokens = powers(10, 13 if options.quick else 16)
    vocab = powers(13, 15 if options.quick else 18)
    d = 4096 if platform == "gpu" else 1024
    # The sizes that grow, one panel each, and what stays as it is.
    memory = [
        ("tokens", [size(n, d, 151_936) for n in tokens]),
        ("vocabulary", [size(8192, d, v) for v in vocab]),
    ]
    how = dict(device=device, dtype=dtype, data=data)
    of_memory = functools.partial(temporaries, **how)
    title = f"Temporaries of forward + backward, compiled for {kind}, {dtype.__name__}"
    made = {"memory": (title, "MiB", sweep(memory, heads, of_memory, "memory"))}

    if measure.on_gpu():
        n, d, v, dtype = 8192, 4096, 151_936, jnp.bfloat16
    else:
        n, d, v, dtype = 1024, 256, 32_000, jnp.float32
        tokens, vocab = powers(8, 12), powers(11, 17)
    if options.quick:
        n, d, v, tokens, vocab = 256, 64, 4000, powers(7, 9), powers(11, 13)
    time = [
        ("tokens", [size(n, d, v) for n in tokens]),
        ("vocabulary", [size(n, d, v) for v in vocab]),
    ]
    heads = {name: methods()[name].loss for name in LINES}
    of_time = functools.partial(
        milliseconds, inputs=inputs, dtype=dtype, rounds=options.rounds
    )
    title = f"{measure.kind_of_time()}, forward + backward, {dtype.__name__}"
    made["time"] = (title, "ms", sweep(time, heads, of_time, "time"))
    numbers = options.out / "pictures.json"
    numbers.write_text(json.dumps(made, indent=1) + "\n", "utf-8")
    pages = [options.out / f"head_{name}.png" for name in made]
    for path, panels in zip(pages, made.values(), strict=True):
        page(path, *panels)
    return [*pages, numbers]


def powers(first: int, last: int) -> list[int]:
    """Of two."""
    return [2**i for i in range(first, last + 1)]


def target() -> tuple[Any, str, str]:
    """What memory is compiled for: this, or an H200 if its compiler is installed.

    That takes `pip install jax-cuda12-plugin jax-cuda12-pjrt`, JAX_PLATFORMS=cpu and no
    GPU.
    """
    here = jax.devices()[0]
    try:
        importlib.import_module("jax_plugins.xla_cuda12")
        how = dict(platform="cuda", topology="1x1x1", target_config=H200.read_text())
        device = topologies.get_topology_desc("one", **how).devices[0]
        return device, "gpu", "an H200"
    except (ImportError, NotImplementedError):
        name = "a CPU" if here.platform == "cpu" else here.device_kind
        return here, here.platform, name


def sweep(panels: Sequence, heads: dict, value: Callable, what: str) -> list[dict]:
    """A value of each head at each size."""
    found = []
    with tqdm(total=sum(len(sizes) for _, sizes in panels), unit="size") as bar:
        for axis, sizes in panels:
            at = 0 if axis == "tokens" else 2
            fixed = [f"{k} = {v}" for k, v in zip("NDV", sizes[0], strict=True)]
            fixed = ", ".join(fixed[:at] + fixed[at + 1 :])
            panel = {"axis": axis, "fixed": fixed, "x": [s[at] for s in sizes]}
            lines = {name: [] for name in heads}
            for size in sizes:
                bar.set_postfix_str(f"{what}: {size}")
                for name, y in value(heads, size).items():
                    lines[name].append(y)
                bar.update()
            found.append(panel | {"lines": lines})
    return found


def temporaries(heads, size, *, device, dtype, data) -> dict[str, float]:
    """MiB beside inputs and outputs; nothing is run."""
    n, d, v = size
    shape = lambda *shape, dtype=dtype: jax.ShapeDtypeStruct(
        shape, dtype, sharding=SingleDeviceSharding(device)
    )
    tokens = [shape(n, dtype=t) for t in (jnp.int32, jnp.float32, bool)]

    def one(loss):
        def of_arrays(hidden, unembed, targets, advantages, mask):
            return loss(hidden, unembed, data(targets, advantages, mask))

        step = jax.jit(jax.value_and_grad(of_arrays, (0, 1)))
        compiled = step.lower(shape(n, d), shape(v, d), *tokens).compile()
        return compiled.memory_analysis().temp_size_in_bytes / 2**20

    return {name: one(loss) for name, loss in heads.items()}


def milliseconds(heads, size, *, inputs, dtype, rounds) -> dict[str, float]:
    """Best of the rounds."""
    arrays = inputs(size, dtype)
    step = lambda loss: jax.jit(jax.value_and_grad(loss, (0, 1)))
    calls = {name: functools.partial(step(f), *arrays) for name, f in heads.items()}
    times = measure.race(calls, rounds, tqdm(disable=True))
    return {name: 1e3 * t for name, t in times.items()}


def page(path: pathlib.Path, title: str, unit: str, panels: list[dict]) -> None:
    """Two panels, log-log."""
    figure, axes = plt.subplots(
        1, len(panels), figsize=(10, 4.6), layout="constrained", sharey=True
    )
    for axis, panel in zip(axes, panels, strict=True):
        for name, ys in panel["lines"].items():
            color = LINES[name]
            style = dict(color=color, linewidth=1.8, markersize=4)
            axis.plot(panel["x"], ys, "o-", label=name, **style)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(panel["x"], [short(x) for x in panel["x"]])
        axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 3)))
        axis.yaxis.set_major_formatter(lambda y, _: f"{y:,.0f}")
        axis.minorticks_off()
        axis.set_xlabel(f"{panel['axis']}   ({panel['fixed']})", fontsize=9)
        axis.tick_params(labelsize=8, labelleft=True)
        axis.grid(color="0.9", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel(unit, fontsize=9)
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(title, fontsize=12)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def short(x: int) -> str:
    """16384 as 16k."""
    return f"{x // 1024}k" if x >= 1024 else str(x)
