"""One turn: a process that loads a model, samples, updates, and says what that took.

    python benchmarks/llm_turns.py FOLDER '{"library": "jaxppo", "remat": true, ...}'

`FOLDER` holds the model, as Hugging Face's files, and `batch.npz`. What was measured
goes into `FOLDER/turn.json`; gradients, where asked for, into `FOLDER/gradients`. No
thread is set here: the environment does that, before anything is imported.
"""

import contextlib
import ctypes
import json
import math
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

sys.path.append(str(pathlib.Path(__file__).parents[1] / "examples"))

LEARNING_RATE = 2e-5


def main(folder: pathlib.Path, how: dict[str, Any]) -> None:
    """The turn of one method."""
    with np.load(folder / "batch.npz") as file:
        batch = dict(file)
    make = {"jaxppo": jaxppo, "trl": trl}[how["library"]]
    sample, update, gradients, limit = make(folder, batch, how)
    measured: dict[str, Any] = {}
    if how["sample"]:
        measured["sample"] = timed(sample, how["repeats"])
    if how["gradients"]:
        gradients(folder / "gradients")
    before = resident("VmHWM")  # loading and sampling; not its parent's, as ru_maxrss
    peak_starts_here()
    measured["update"] = timed(update, how["repeats"])
    measured["update MiB"] = resident("VmHWM")
    measured["process MiB"] = max(before, measured["update MiB"])
    measured["matmul GFLOP/s"] = limit()
    (folder / "turn.json").write_text(json.dumps(measured))


def timed(call: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Median seconds of a call, after one that is not counted."""
    call()
    wall, cpu = [], []
    for _ in range(repeats):
        starts = time.perf_counter(), time.process_time()
        call()
        wall.append(time.perf_counter() - starts[0])
        cpu.append(time.process_time() - starts[1])
    return {"wall": statistics.median(wall), "cpu": statistics.median(cpu)}


def peak_starts_here() -> None:
    """Forget the high-water mark, and what the allocator holds without use."""
    ctypes.CDLL(None).malloc_trim(0)
    pathlib.Path("/proc/self/clear_refs").write_text("5")


def resident(field: str) -> float:
    """MiB of this process."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(f"{field}:")]
    return int(line.split()[1]) / 1024


def jaxppo(folder: pathlib.Path, batch: dict[str, np.ndarray], how: dict) -> tuple:
    """Ours, as `examples/llm/runs.py` calls it."""
    import jax
    import jax.numpy as jnp
    from flax import nnx
    from llm import weights
    from llm.model import Training, is_trained
    from llm.training import Hyper, trainer

    source, kind = weights.read(folder / "model"), Training(remat=how["remat"])
    c, words = source.config, source.tokenizer
    graph, params = weights.loaded(source, kind, jax.random.key(0))
    trained, frozen = nnx.split_state(params, is_trained(c, kind), ...)
    del source, params  # the open file is memory, too
    prompts, group, new = batch["completions"].shape
    hyper = Hyper(
        prompts_per_update=prompts,
        group_size=group,
        num_minibatches=1,
        num_microbatches=how["microbatches"],
        learning_rate=LEARNING_RATE,
        max_grad_norm=max_grad_norm(how),
    )
    of = trainer(graph, hyper, dtype=kind.dtype, max_new_tokens=new, end_ids=())
    put = lambda tree: jax.tree.map(jnp.array, tree)
    frozen = put(frozen)
    state = jax.jit(of.init)(put(trained))
    del trained
    on_device = put(batch)
    draw, learn = jax.jit(of.sample), jax.jit(of.update, donate_argnums=0)
    key = jax.random.key(0)

    def sample() -> Any:
        asked = on_device["prompts"], on_device["prompt_mask"]
        return jax.block_until_ready(draw(state.params, frozen, *asked, key))

    def update() -> None:
        nonlocal state
        state, _ = jax.block_until_ready(learn(state, frozen, None, on_device, key))

    def gradients(out: pathlib.Path) -> None:
        update()
        kept = jax.tree.leaves(state.opt_state, is_leaf=_is_adam)
        moments = [x.mu for x in kept if _is_adam(x)]
        (moment,) = [mu for mu in moments if jax.tree.leaves(mu)]  # no critic, none
        weights.export(out, c, kind, moment, words, ())

    def limit() -> float:
        """Of `x @ y` with the tokens of an update and the matrices of an MLP."""
        tokens = batch["prompts"].size + batch["completions"].size
        x, y = jnp.ones((tokens, c.dim)), jnp.ones((c.dim, c.hidden_dim))
        product = jax.jit(jnp.matmul)
        many = lambda: [jax.block_until_ready(product(x, y)) for _ in range(20)]
        seconds = timed(many, 5)["cpu" if how["threads"] == 1 else "wall"]
        return 20 * 2 * tokens * y.size / seconds / 1e9

    return sample, update, gradients, limit


def max_grad_norm(how: dict[str, Any]) -> float:
    """As long as it is where gradients are compared: no scale is clipped away."""
    return math.inf if how["gradients"] else 1.0


def _is_adam(x: Any) -> bool:
    return hasattr(x, "mu")


def trl(folder: pathlib.Path, batch: dict[str, np.ndarray], how: dict) -> tuple:
    """TRL's GRPOTrainer, its own steps, on completions that are given.

    Args:
        folder: with the model.
        batch: as ours; each prompt is repeated for its samples here.
        how: `checkpointing`, `bf16`, and `rows` in a pass, the rest accumulates.
    """
    import datasets
    import torch
    import transformers
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(how["threads"])
    prompts, group, new = batch["completions"].shape
    rows = prompts * group
    steps = rows // how["rows"]
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder / "model", dtype=torch.float32
    )
    words = transformers.AutoTokenizer.from_pretrained(folder / "model")
    words.eos_token_id = how["end_id"]
    trainer = GRPOTrainer(
        model=model,
        processing_class=words,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        train_dataset=datasets.Dataset.from_dict({"prompt": ["a"] * prompts}),
        args=GRPOConfig(
            output_dir=str(folder / "trl"),
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            loss_type="grpo",
            bf16=how["bf16"],
            gradient_checkpointing=how["checkpointing"],
            num_generations=group,
            max_completion_length=new,
            per_device_train_batch_size=how["rows"],
            gradient_accumulation_steps=steps,
            learning_rate=LEARNING_RATE,
            max_grad_norm=max_grad_norm(how),
            lr_scheduler_type="constant",
        ),
    )
    if how["checkpointing"]:
        trainer.model.gradient_checkpointing_enable()  # as its `train` begins
    trainer.create_optimizer_and_scheduler(num_training_steps=1000)
    model, optimizer = trainer.accelerator.prepare(trainer.model, trainer.optimizer)
    trainer.model_wrapped, trainer.optimizer = model, optimizer
    trainer.current_gradient_accumulation_steps = steps
    # As it pads: to the longest.
    start = int(np.argmax(batch["prompt_mask"].any(0)))
    once = {
        "prompt_ids": batch["prompts"][:, start:],
        "prompt_mask": batch["prompt_mask"][:, start:],
    }
    given = {name: np.repeat(x, group, 0) for name, x in once.items()}
    flat = lambda name: batch[name].reshape(rows, -1)
    given |= {
        "completion_ids": flat("completions"),
        "completion_mask": flat("mask"),
        "old_per_token_logps": flat("old_log_probs"),
        "advantages": flat("advantages")[:, 0],
    }
    whole = lambda x: x.astype(np.int64) if x.dtype in (np.int32, bool) else x
    given = {name: torch.from_numpy(whole(x)) for name, x in given.items()}
    parts = [
        {name: x[at : at + how["rows"]] for name, x in given.items()}
        for at in range(0, rows, how["rows"])
    ]
    trainer._prepare_inputs = lambda part: part  # they are: nothing is to be sampled
    sync = trainer.accelerator.gradient_state

    def update() -> None:
        for i, part in enumerate(parts):
            sync._set_sync_gradients(i == len(parts) - 1)
            trainer.training_step(model, part, None)
        trainer.accelerator.clip_grad_norm_(
            model.parameters(), trainer.args.max_grad_norm
        )
        optimizer.step()
        trainer.lr_scheduler.step()
        model.zero_grad()

    asked = given["prompt_ids"], given["prompt_mask"]

    def sample() -> Any:
        model.eval()
        with torch.no_grad():
            out = model.generate(
                *asked[:1],
                attention_mask=asked[1],
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                use_cache=True,
                max_new_tokens=new,
                min_new_tokens=new,
                pad_token_id=how["end_id"],
            )
        assert out.shape == (rows, asked[0].shape[1] + new), out.shape
        return out

    def gradients(out: pathlib.Path) -> None:
        from safetensors.torch import save_file

        update()
        moments = {
            name: optimizer.state[x]["exp_avg"]
            for name, x in trainer.accelerator.unwrap_model(model).named_parameters()
        }
        out.mkdir(parents=True, exist_ok=True)
        save_file(moments, out / "model.safetensors")

    return sample, update, gradients, lambda: None


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):
        main(pathlib.Path(sys.argv[1]), json.loads(sys.argv[2]))
