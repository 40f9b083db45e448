"""Bytes and operations a device, of the language models' example on meshes.

    python benchmarks/scaling.py                       # H200s, by their compiler
    python benchmarks/scaling.py --target v5p          # TPUs, by theirs: hours
    python benchmarks/scaling.py --quick --target cpu  # a tiny model, 8 devices

Nothing is allocated and no device has to be there: the real `update` and `sample` of
examples/llm are compiled for shapes alone. It needs the target's plugin, as
tests/compiled does.
"""

import dataclasses
import math
import os
import pathlib
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, NamedTuple
from unittest import mock

# Read when JAX starts its backend, which some of the imports do.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # else libtpu looks for a cloud
sys.path.append(str(pathlib.Path(__file__).parents[1] / "examples"))

import jax
import jax.numpy as jnp
import measure
import numpy as np
import tyro
from flax import nnx
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding
from llm import sharding, weights
from llm.model import Config, RopeScaling, Training, is_trained
from llm.training import Hyper, trainer
from tqdm import tqdm

import jaxppo

GIB, TERA = 2**30, 1e12
H200 = pathlib.Path(__file__).with_name("h200.textproto")
PLATFORMS = {"h200": "gpu", "v5p": "tpu", "cpu": "cpu"}
V5P = {8: "v5p:2x2x2", 64: "v5p:4x4x4", 256: "v5p:4x8x8"}
MODELS = {
    "tiny": Config(
        vocab_size=1024,
        dim=256,
        hidden_dim=1024,
        num_layers=8,
        num_heads=4,
        num_kv_heads=2,
        head_dim=64,
        max_len=512,
        rope_theta=1e4,
        norm_eps=1e-5,
    ),
    "Qwen2.5-7B": Config(
        vocab_size=152_064,
        dim=3584,
        hidden_dim=18_944,
        num_layers=28,
        num_heads=28,
        num_kv_heads=4,
        head_dim=128,
        max_len=32_768,
        rope_theta=1e6,
        norm_eps=1e-6,
        tied=False,
        qkv_bias=True,
    ),
    "Llama-3.1-70B": Config(
        vocab_size=128_256,
        dim=8192,
        hidden_dim=28_672,
        num_layers=80,
        num_heads=64,
        num_kv_heads=8,
        head_dim=128,
        max_len=131_072,
        rope_theta=5e5,
        norm_eps=1e-5,
        rope_scaling=RopeScaling(8.0, 1.0, 4.0, 8192),
        tied=False,
    ),
}


class Case(NamedTuple):
    """A model on a mesh, and what it is given.

    Attributes:
        model: of MODELS.
        mesh: sizes of the axes data, fsdp and tensor.
        prompts: of an update, over all devices.
        microbatches: parts that they are computed in.
        group: completions of a prompt.
        prompt: tokens of a prompt.
        new: tokens of a completion.
    """

    model: str
    mesh: tuple[int, int, int]
    prompts: int
    microbatches: int = 1
    group: int = 8
    prompt: int = 512
    new: int = 1024

    @property
    def devices(self) -> int:
        return int(np.prod(self.mesh))


QWEN, LLAMA = "Qwen2.5-7B", "Llama-3.1-70B"
CASES = [
    Case(QWEN, (1, 8, 1), 8),
    Case(QWEN, (1, 64, 1), 64),
    Case(QWEN, (32, 8, 1), 256),
    Case(LLAMA, (1, 8, 8), 8),
    Case(LLAMA, (1, 64, 1), 64),
    Case(LLAMA, (1, 32, 8), 32),
]
QUICK = [
    Case("tiny", mesh, 8, group=8, prompt=16, new=32)
    for mesh in [(1, 1, 1), (1, 8, 1), (1, 4, 2)]
]


@dataclasses.dataclass
class Options:
    """Of the command line."""

    out: pathlib.Path = pathlib.Path("runs/benchmarks/scaling")
    """Folder of the table."""
    target: Literal["h200", "v5p", "cpu"] = "h200"
    """What to compile for."""
    quick: bool = False
    """Tiny models."""
    only: str = ""
    """Models whose names contain this."""


def devices(target: str, count: int) -> list[Any]:
    """Descriptions of devices that are not here; on a CPU, fake ones."""
    jax.config.update("jax_platforms", "cpu")  # do not look for CUDA itself
    here = jax.devices()  # now the plugins are known
    if target == "cpu":
        return here[:count]
    if target == "v5p":
        kind: dict[str, Any] = dict(platform="tpu", topology_name=V5P[count])
    else:  # slices x hosts x devices of a host
        topology = f"1x{max(count // 8, 1)}x{min(count, 8)}"
        kind = dict(platform="cuda", topology=topology)
        kind["target_config"] = H200.read_text()
        return topologies.get_topology_desc("h200", **kind).devices
    return topologies.get_topology_desc(**kind).devices


@contextmanager
def compiling(case: Case, target: str) -> Iterator[Mesh]:
    """On the mesh; the head is planned for the target, not for where this runs."""
    found = np.array(devices(target, case.devices)).reshape(case.mesh)
    mesh = Mesh(found, sharding.AXES, axis_types=(AxisType.Auto,) * 3)
    default = mock.patch.object(jax, "default_backend", lambda: PLATFORMS[target])
    with jax.set_mesh(mesh), default:
        yield mesh


def lowered(case: Case, config: Config, mesh: Mesh) -> tuple[Any, Any]:
    """The example's update and its sampling, of shapes and shardings."""
    training = Training(dtype=jnp.bfloat16)
    graph, params = weights.graph_and_shapes(config, training)
    trained, frozen = nnx.split_state(params, is_trained(config, training), ...)
    hyper = Hyper(
        group_size=case.group,
        num_minibatches=1,
        num_microbatches=case.microbatches,
    )
    of = trainer(
        graph, hyper, dtype=training.dtype, max_new_tokens=case.new, end_ids=(0,)
    )

    def spread(tree: Any) -> Any:
        return jax.tree.map(
            lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
            tree,
            sharding.of_parameters(mesh, tree),
        )

    rows = partial(jax.ShapeDtypeStruct, sharding=NamedSharding(mesh, sharding.ROWS))
    trained, frozen = spread(trained), spread(frozen)
    state = spread(jax.eval_shape(of.init, trained))
    of_prompts, group = (case.prompts, case.prompt), (case.prompts, case.group)
    prompts = {
        "prompts": rows(of_prompts, jnp.int32),
        "prompt_mask": rows(of_prompts, jnp.bool_),
    }
    batch = prompts | {
        "completions": rows((*group, case.new), jnp.int32),
        "mask": rows((*group, case.new), jnp.bool_),
        "old_log_probs": rows((*group, case.new), jnp.float32),
        "rewards": rows(group, jnp.float32),
        "scored": rows(group, jnp.bool_),
    }
    key = jax.eval_shape(lambda: jax.random.key(0))
    update = jax.jit(of.update, donate_argnums=0)
    sample = jax.jit(of.sample)
    return (
        update.lower(state, frozen, None, batch, key),
        sample.lower(trained, frozen, *prompts.values(), key),
    )


def compiled(program: Any, target: str) -> Any:
    """As compiled for the target."""
    options: dict[str, Any] = {"xla_backend_optimization_level": 0}  # it is not run
    if target == "h200":  # Triton's products fail to compile with none to try them on
        options["xla_gpu_enable_triton_gemm"] = False
    return program.compile(compiler_options=None if target == "v5p" else options)


def measured(case: Case, target: str) -> dict[str, Any]:
    """What the compiler says: GiB a device, and operations (a TPU's does not say)."""
    with compiling(case, target) as mesh:
        update, sample = (
            compiled(program, target)
            for program in lowered(case, MODELS[case.model], mesh)
        )
    held, sampling = update.memory_analysis(), sample.memory_analysis()
    _, blocks = plan_of_head(case, target)
    count = None if target == "v5p" else operations(update.as_text(), blocks) / TERA
    state = held.argument_size_in_bytes / GIB
    update, sample = (m.temp_size_in_bytes / GIB for m in (held, sampling))
    return {
        "state": state,
        "update": update,
        "sampling": sample,
        "peak": state + max(update, sample),
        "TFLOP": count,
    }


def plan_of_head(case: Case, target: str) -> tuple[str, int]:
    """Its mode, and the blocks of tokens that it takes if none of them is masked."""
    data, fsdp, tensor = case.mesh
    rows = case.prompts // (data * fsdp * case.microbatches)
    tokens, c = rows * case.group * case.new, MODELS[case.model]
    sizes = tokens, c.vocab_size // tensor, c.dim
    plan = jaxppo.head_plan(*sizes, masked=True, platform=PLATFORMS[target])
    return plan.mode, math.ceil(tokens / plan.token_block)


def operations(program: str, unknown: int) -> float:
    """Of the products of matrices in a compiled program, on one device.

    XLA's own count, `cost_analysis`, takes the body of a loop once (and has nothing for
    a GPU that is not here). This one takes it as often as the compiler says that it
    runs, or `unknown` times where that depends on data.
    """
    shapes, own, calls, entry, name = {}, {}, {}, "", ""
    for line in program.splitlines():
        if start := re.match(r"(ENTRY )?%?([\w.-]+) \(.*\{$", line):
            name = start[2]
            own[name], calls[name] = 0.0, []
            entry = name if start[1] else entry
        if made := re.match(r"\s+(?:ROOT )?%([\w.-]+) = \(?\w+\[([\d,]*)\]", line):
            shapes[made[1]] = [int(n) for n in made[2].split(",") if n]
        if made and (of := re.search(r" (?:dot|custom-call)\(%([\w.-]+)", line)):
            over = re.search(r'lhs_contracting_dim[\w"]*[=:]([\[{][\d,"]*)', line)
            if over is not None:
                sizes = [shapes[of[1]][int(d)] for d in re.findall(r"\d+", over[1])]
                own[name] += 2.0 * math.prod(shapes[made[1]]) * math.prod(sizes)
        trips = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
        for kind, called in re.findall(r"(body|calls|to_apply)=%?([\w.-]+)", line):
            runs = int(trips[1]) if trips else unknown
            calls[name].append((called, runs if kind == "body" else 1))
        for called in re.findall(r"branch_computations=\{([^}]*)\}", line):
            calls[name] += [(one.strip(" %"), 1) for one in called.split(",")]

    def total(name: str) -> float:
        return own[name] + sum(runs * total(called) for called, runs in calls[name])

    return total(entry)


def by_hand(case: Case, target: str) -> float:
    """Of an update, on all devices: 10 for a parameter and a token, and attention's.

    2 forward, 4 backward, and 2 to compute it again: not a layer's last product, nor
    the head where its logits are kept. And 2 before that, for the log-probs of the
    policy that sampled, which in bfloat16 are not quite what the sampler says.
    """
    c, g = MODELS[case.model], case.group
    of_heads = 2 * c.dim * c.head_dim * (c.num_heads + c.num_kv_heads)
    of_mlp = c.dim * c.hidden_dim
    length, new = case.prompt, case.new - 1
    tokens = length + g * new
    pairs = length**2 + g * new * (length + new)  # what is masked is not skipped
    layer = 10 * tokens * (of_heads + 2 * of_mlp) + 8 * tokens * of_mlp
    layer += 10 * pairs * 2 * c.num_heads * c.head_dim
    each = 8 if plan_of_head(case, target)[0] == "cached" else 10
    head = each * g * case.new * c.vocab_size * c.dim
    return float(case.prompts * (c.num_layers * layer + head))


def row(case: Case, target: str) -> dict[str, Any]:
    """Of the table."""
    axes = [f"{k}={n}" for k, n in zip(sharding.AXES, case.mesh, strict=True) if n > 1]
    of = {"model": case.model, "devices": case.devices, "mesh": ",".join(axes)}
    hand = by_hand(case, target) / TERA / case.devices
    return of | {"prompts": case.prompts} | measured(case, target) | {"by hand": hand}


def main(options: Options) -> None:
    """Write the table."""
    cases = QUICK if options.quick else CASES
    cases = [case for case in cases if options.only in case.model]
    rows = []
    for case in tqdm(cases, unit="mesh"):
        rows.append(row(case, options.target))
        tqdm.write(str(rows[-1]))
    text = (
        f"GiB and TFLOP of one device, jaxppo's examples/llm compiled for "
        f"{options.target} in bfloat16:\n\n{measure.table(rows, rows[0])}"
    )
    options.out.mkdir(parents=True, exist_ok=True)
    for path in measure.write(options.out, "scaling", text, rows):
        print(path)
    print(text)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
