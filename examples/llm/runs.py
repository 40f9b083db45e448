"""A run: a model from a file, prompts, rewards, updates, and all that a person sees."""

import json
import time
from collections.abc import Callable
from contextlib import closing, nullcontext
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import curves, devices, folders, signals
from common.checkpoints import Checkpoints
from flax import nnx
from tokenizers import Tokenizer
from tqdm import tqdm

import jaxppo

from . import rollouts, sharding, tasks, tiny, weights
from .algorithms import ALGORITHMS
from .model import Training, is_trained
from .options import Options, parse, refuse, refuse_parts, refuse_prompts
from .scoring import Scorer
from .training import trainer

__all__ = ["Options", "parse", "train"]
PANELS = {  # what is drawn of a row; the reward large
    "reward": "mean reward",
    "length": "length, tokens",
    "approx_kl": "KL of the update, nats",
    "ref_kl": "KL to the start, nats",
    "clip_fraction": "clipped",
    "entropy": "entropy, nats a token",
    "grad_norm": "gradient norm",
    "explained_variance": "explained variance",
}


def train(options: Options) -> dict[str, float]:
    """Train; leaves metrics, a picture, checkpoints and the policy in a folder.

    Returns:
        The mean reward of held-out problems, `before` and `after`.
    """
    o = options
    devices.join(o.coordinator, o.processes, o.process)
    mesh = devices.mesh(o.mesh, sharding.AXES, o.axes == "explicit")
    on_mesh = jax.set_mesh(mesh) if mesh is not None else nullcontext()
    with devices.together(), on_mesh:
        run = _Run(o, mesh)
        with closing(run.player.scorer):
            return run.train()


class _Run:
    def __init__(self, options: Options, mesh: Any):
        self.options, self.mesh, o = options, mesh, options
        task = tasks.task(o.task)
        if o.model == "tiny":
            self.source = tiny.source()
        else:
            path = weights.smollm2() if o.model == "smollm2" else o.model
            self.source = weights.read(path)
        config, tokenizer = self.source.config, self.source.tokenizer
        given = lambda name: getattr(task if getattr(o, name) is None else o, name)
        room, new = given("max_prompt_tokens"), given("max_new_tokens")
        refuse(o, room + new, config)
        refuse_parts(o, mesh)
        refuse_prompts(o, task, tokenizer, room)
        self.training = Training(
            layers=o.train_layers,
            lora_rank=o.lora_rank,
            value_head=ALGORITHMS[o.algorithm].critic,
            dtype=jnp.dtype(o.dtype),
            remat=o.remat,
        )
        keys = jax.random.split(jax.random.key(o.seed), 3)
        new_key, self.key, self.held_out_key = keys
        graph, params = weights.loaded(self.source, self.training, new_key)
        of_trained = is_trained(config, self.training)
        trained, frozen = nnx.split_state(params, of_trained, ...)
        ends = (*self.source.end_ids, *_ids_with(tokenizer, task.stop))
        dtype = self.training.dtype
        of = trainer(graph, o, dtype=dtype, max_new_tokens=new, end_ids=ends)
        self.frozen = sharding.parameters(mesh, frozen)
        self.ref = sharding.parameters(mesh, trained) if o.kl_coef else None
        trained = sharding.parameters(mesh, trained)
        shapes = jax.eval_shape(of.init, trained)
        places = None if mesh is None else sharding.of_parameters(mesh, shapes)
        self.state = jax.jit(of.init, out_shardings=places)(trained)
        self.update = jax.jit(of.update, donate_argnums=0)
        scorer = Scorer(task.reward, o.reward_seconds)
        sample = jax.jit(of.sample)
        self.player = rollouts.Player(task, tokenizer, room, sample, scorer, mesh)
        self.main = jax.process_index() == 0

    def train(self) -> dict[str, float]:
        o = self.options
        out = folders.folder(o.algorithm, o)
        config = folders.config(o)
        checkpoints = Checkpoints(out / "checkpoints", config, keep=2)  # of gigabytes
        done = 0
        if o.resume and (restored := checkpoints.restore(self.state)):
            done, self.state = restored
        rows = folders.rewind(out, "update", done) if self.main else []
        log = _tensorboard(out, done) if self.main else None
        start = time.perf_counter() - (rows[-1]["seconds"] if rows else 0)
        if done == 0:
            self._judge("before", out)
        bar = tqdm(total=o.num_updates, initial=done, desc=o.algorithm, unit="update")
        bar.disable = not self.main
        bar.set_postfix_str("compiling")

        def save() -> None:
            checkpoints.save(done, self.state)
            if log is not None:
                log(rows)

        def leave_if_asked() -> None:
            if came := asked():
                save()
                signals.leave(came, out)

        with signals.held() as asked, bar:
            while done < o.num_updates:
                leave_if_asked()
                batch, key, row = self._played(done)
                leave_if_asked()  # the signal may have ended those who scored, too
                row |= self._learned(batch, key)
                seconds = row["sample_seconds"] + row["update_seconds"]
                tokens = row["length"] * batch["rewards"].size
                row["tokens_per_second"] = tokens / seconds
                done += 1
                row = {"update": done, "seconds": time.perf_counter() - start} | row
                if self.main:
                    rows.append(row)
                    folders.append(out, row)
                jaxppo.check_progress(self.state)
                if done % o.save_every == 0 or done == o.num_updates:
                    save()
                bar.set_postfix_str(f"reward {row['reward']:.2f}")
                bar.update()
        checkpoints.close()
        with folders.writing(out / "policy"):
            self._judge("after", out)
            self._leave(out, rows)
        read = lambda when: json.loads((out / f"{when}.json").read_text())
        return {when: read(when)["mean_reward"] for when in ("before", "after")}

    def _played(self, index: int) -> tuple[dict[str, Any], jax.Array, dict[str, float]]:
        """Samples with their rewards, a key to learn with, and metrics."""
        o, start = self.options, time.perf_counter()
        key, learn_key = jax.random.split(jax.random.fold_in(self.key, index))
        seed, count = f"{o.seed} {index}", o.prompts_per_update
        rollout = self._play(self.player.problems(seed, count, False), key)
        row = {
            "reward": rollouts.mean(rollout.rewards, rollout.scored),
            "length": float(np.mean(np.sum(rollout.samples.mask, -1))),
            "failed_rewards": int(np.sum(~rollout.scored)),
            "sample_seconds": time.perf_counter() - start,
        }
        return rollout.batch(), learn_key, row

    def _play(self, problems: list[tasks.Problem], key: jax.Array) -> rollouts.Rollout:
        return self.player.play(problems, self.state.params, self.frozen, key)

    def _learned(self, batch: dict[str, Any], key: jax.Array) -> dict[str, float]:
        """Learns from them; metrics."""
        start = time.perf_counter()
        rows = sharding.rows(self.mesh, batch)
        self.state, metrics = self.update(self.state, self.frozen, self.ref, rows, key)
        row = {k: float(v) for k, v in jaxppo.finalize(metrics).items()}
        return row | {"update_seconds": time.perf_counter() - start}

    def _judge(self, when: str, out: Path) -> None:
        """The mean reward of held-out problems, and some completions, in a file."""
        o, found, shown = self.options, [], []
        problems = self.player.problems(f"{o.seed}", o.eval_prompts, True)
        for i in range(0, o.eval_prompts, o.prompts_per_update):
            # The last are filled up: a batch of another size would compile again.
            some = list(islice(cycle(problems), i, i + o.prompts_per_update))
            x = self._play(some, jax.random.fold_in(self.held_out_key, i))
            found.append((x.rewards, x.scored))
            firsts = x.texts[:: o.group_size], x.rewards[:, 0]
            shown += zip(some, *firsts, strict=True)
        rewards, scored = (
            np.concatenate(x)[: o.eval_prompts] for x in zip(*found, strict=True)
        )
        mean = rollouts.mean(rewards, scored)
        samples = [
            {"prompt": p.prompt, "completion": text, "reward": float(reward)}
            for p, text, reward in shown[: o.eval_prompts]
        ]
        if not self.main:
            return
        report = {"mean_reward": mean, "samples": samples}
        folders.replace(out / f"{when}.json", json.dumps(report, indent=2) + "\n")
        tqdm.write(f"{when} training: mean reward {mean:.3f} on held-out problems")
        different = {x["prompt"]: x for x in samples}
        for x in list(different.values())[:4]:
            last = x["prompt"].splitlines()[-1]
            tqdm.write(f"  {last}{x['completion'].rstrip()!r}  {x['reward']:g}")

    def _leave(self, out: Path, rows: list[dict[str, float]]) -> None:
        """The policy, for transformers and for `--model`, and the picture."""
        both = jax.tree.map(sharding.whole, (self.state.params, self.frozen))
        params = nnx.merge_state(*both)
        if not self.main:
            return
        ends = self.source.end_ids
        args = self.source.config, self.training, params, self.source.tokenizer, ends
        weights.export(out / "policy", *args)
        if rows:
            self._draw(rows, out / "curves.png")
        print(f"curves   {out / 'curves.png'}\nmetrics  {out / 'metrics.jsonl'}")
        print(f"policy   {out / 'policy'}/")

    def _draw(self, rows: list[dict[str, float]], path: Path) -> None:
        found = {PANELS[k]: [row[k] for row in rows] for k in PANELS if k in rows[0]}
        figure = curves.draw([int(row["update"]) for row in rows], found)
        main, o = figure.axes[0], self.options
        title = f"{o.algorithm}, {o.task}: mean reward of the samples of each update"
        main.set_title(title, loc="left")
        main.set(ylim=(-0.02, 1.02), xlabel="updates")
        figure.savefig(path, dpi=120)


def _ids_with(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """Tokens that contain a text: any of them ends a completion."""
    ids = range(tokenizer.get_vocab_size())
    return tuple(i for i in ids if text in tokenizer.decode([i]))


def _tensorboard(out: Path, done: int) -> Callable[[list[dict[str, float]]], None]:
    """Writes what it has not yet of the rows, if TensorBoard's writer is installed.

    What a killed run wrote after `done` goes.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        return lambda rows: None
    board: Any = SummaryWriter(str(out / "tensorboard"), purge_step=done + 1)

    def write(rows: list[dict[str, float]]) -> None:
        # Its thread ends where the disk is full; who hands it more waits for ever.
        if not board.file_writer.event_writer._worker.is_alive():
            return
        nonlocal done
        for row in rows:
            for name, value in row.items() if row["update"] > done else ():
                board.add_scalar(name, value, row["update"])
        board.flush()
        done = int(rows[-1]["update"]) if rows else done

    return write
