"""What examples/control learns in 5e5 steps, and which of its details make it fast.

    python benchmarks/control_learning.py          # half an hour on two cores
    python benchmarks/control_learning.py --quick  # CartPole, a few updates
    python benchmarks/control_learning.py --purejaxrl path/to/a/checkout

Each run is that of an example, with its options; one that is there is not made again.
Breakout needs gymnax, Hopper and HalfCheetah need gymnasium[mujoco]: what is not
installed is left out, and said. Leaves control_learning.json, its tables and pictures.
"""

import dataclasses
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import matplotlib
import measure
import numpy as np
import tyro

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "examples"))
import acrobot
import cartpole
import gymnasium_vector
import minatar
import mountain_car
import pendulum
from common import folders
from control import adapters, environments, runs
from control.training import PPO

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PEERS = pathlib.Path(__file__).with_name("control_peers.py")
MUJOCO = dataclasses.replace(
    gymnasium_vector.OPTIONS,
    **{"num_envs": 8, "num_steps": 256, "num_epochs": 10, "num_minibatches": 32},
    **{"learning_rate": 3e-4, "gamma": 0.99, "gae_lambda": 0.95},
    **{"continuous": "normal", "normalise_obs": True, "normalise_rewards": True},
)


@dataclasses.dataclass(frozen=True)
class Task:
    """What to learn, and what others have got."""

    options: Any
    others: str
    level: float
    """Of the others, drawn in the picture."""
    environment: Callable[[], Any] | None = None
    """None: gymnasium's, on the host."""
    needs: str = "jax"
    steps: int = 500_000


TASKS = {
    "CartPole-v1": Task(
        **{"options": cartpole.OPTIONS, "environment": environments.cartpole},
        **{"others": "CleanRL 490.0 ± 6.1", "level": 490},
    ),
    "Acrobot-v1": Task(
        **{"options": acrobot.OPTIONS, "environment": environments.acrobot},
        **{"others": "CleanRL -86.4 ± 1.3", "level": -86},
    ),
    "MountainCar-v0": Task(
        **{"options": mountain_car.OPTIONS, "environment": environments.mountain_car},
        **{"others": "CleanRL, purejaxrl -200 ± 0", "level": -110},
    ),
    "Pendulum-v1": Task(
        **{"options": pendulum.OPTIONS, "environment": environments.pendulum},
        **{"others": "gymnax-blines ≈ -200 at 9e5", "level": -200},
    ),
    "Breakout-MinAtar": Task(
        options=minatar.OPTIONS,
        environment=lambda: adapters.from_gymnax("Breakout-MinAtar"),
        others="purejaxrl 14.5 ± 2.3, gymnax-blines 15 to 20, all at 1e6",
        level=15,
        needs="gymnax",
        steps=1_000_000,
    ),
    "Hopper-v5": Task(
        **{"options": MUJOCO, "others": "CleanRL 2383 ± 272 (v4) at 1e6"},
        **{"level": 2383, "needs": "mujoco"},
    ),
    "HalfCheetah-v5": Task(
        **{"options": MUJOCO, "others": "CleanRL 1443 ± 46 (v4) at 1e6"},
        **{"level": 1443, "needs": "mujoco"},
    ),
}

PUREJAXRL = PPO(
    **{"total_steps": 500_000, "num_envs": 4, "num_steps": 128},
    **{"num_epochs": 4, "num_minibatches": 4, "learning_rate": 2.5e-4},
    **{"entropy_coef": 0.01, "value_loss": "clipped", "truncation": "terminal"},
    joint_clip=True,
)
"""Its settings; its own program takes the same course, if a checkout is given."""
DETAILS = {
    "learning rate 1e-3, not 2.5e-4": {"learning_rate": 1e-3},
    "10 epochs of 8 minibatches, not 4 of 4": {"num_epochs": 10, "num_minibatches": 8},
    "discount 0.98, not 0.99": {"gamma": 0.98},
    "lambda 0.9, not 0.95": {"gae_lambda": 0.9},
    "no entropy bonus": {"entropy_coef": 0.0},
    "values not clipped": {"value_loss": "squared"},
    "actor and critic clipped separately": {"joint_clip": False},
    "time limits bootstrapped": {"truncation": "bootstrap"},
}
ALL = {name: value for detail in DETAILS.values() for name, value in detail.items()}
SOLVED = 475


@dataclasses.dataclass(frozen=True)
class Options:
    """What to run."""

    tasks: tuple[str, ...] = tuple(TASKS)
    """Names of environments."""
    ablation: bool = True
    """CartPole, from purejaxrl's settings to ours."""
    purejaxrl: pathlib.Path | None = None
    """A checkout of luchris429/purejaxrl; it needs gymnax and distrax."""
    purejaxrl_python: pathlib.Path = pathlib.Path(sys.executable)
    """Who has those."""
    seeds: int = 5
    """Runs of each."""
    quick: bool = False
    """Only see that it works."""
    out: pathlib.Path = pathlib.Path("runs/control_learning")
    """Folder for the runs, the tables and the pictures."""


def main(o: Options) -> None:
    """Run, and write down what came of it."""
    if o.quick:
        o = dataclasses.replace(o, tasks=("CartPole-v1",), seeds=2)
    (o.out / "runs").mkdir(parents=True, exist_ok=True)
    there = lambda name: importlib.util.find_spec(TASKS[name].needs) is not None
    for name in o.tasks:
        if not there(name):
            print(f"left out: {name} (pip install {TASKS[name].needs})")
    learned = {name: learn(name, o) for name in filter(there, o.tasks)}
    text = [summary(learned, o)]
    draw_tasks(learned, o.out / "control_learning.png")
    results = {"tasks": learned}
    if o.ablation:
        results["ablation"] = ablation = ablate(o)
        text.append(ablation_summary(ablation))
        draw_ablation(ablation, o.out / "control_ablation.png")
    print("\n\n".join(text))
    paths = measure.write(o.out, "control_learning", "\n\n".join(text), results)
    print("written:", *paths, *sorted(o.out.glob("*.png")))


# Runs


def once(
    name: str, o: Options, options: Any, run: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """What a run of these options came to, made only if it is not there."""
    path = o.out / "runs" / f"{name}.json"
    wanted = {"seeds": o.seeds} | (folders.config(options) if options else {})
    found = json.loads(path.read_text()) if path.exists() else {}
    if found.get("options") != wanted:
        start = time.process_time()
        found = run() | {"options": wanted}
        found["cpu_seconds"] = round(time.process_time() - start, 1)
        found["returns"] = np.round(found["returns"], 1).tolist()
        path.write_text(json.dumps(found) + "\n")
    return found


def learn(name: str, o: Options) -> dict[str, Any]:
    """Returns of an environment, by steps and seeds."""
    task = TASKS[name]
    steps = 8192 if o.quick else task.steps
    options = dataclasses.replace(task.options, total_steps=steps)
    if task.environment is None:
        return once(name, o, options, lambda: on_the_host(name, options, o))
    train = lambda: trained(name, task.environment(), options, o)
    return once(name, o, options, train)


def trained(name: str, env: Any, options: Any, o: Options) -> dict[str, Any]:
    """By `control.runs`, evaluated on 100 fresh episodes of each seed."""
    out = o.out / "runs" / f"{name}-{time.time_ns()}"
    options = dataclasses.replace(options, out=out, seeds=o.seeds)
    final = runs.train(name, env, options, goal=np.nan)
    rows = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    steps, returns = zip(*((r["step"], r["eval_return"]) for r in rows), strict=True)
    return {"steps": steps, "returns": returns, "final": final.mean(1).tolist()}


def on_the_host(name: str, options: Any, o: Options) -> dict[str, Any]:
    """Of the last 20 episodes played, seed by seed."""
    options = dataclasses.replace(options, env_name=name)
    curves = [
        gymnasium_vector.train(dataclasses.replace(options, seed=seed))
        for seed in range(o.seeds)
    ]
    steps, returns = np.moveaxis(np.array(curves), 2, 0)
    return {
        "steps": steps[0].tolist(),
        "returns": returns.T.tolist(),
        "final": returns[:, -1].tolist(),
    }


def ablate(o: Options) -> dict[str, dict[str, Any]]:
    """CartPole by purejaxrl's settings, by ours, and with one detail exchanged."""
    cases = {"purejaxrl's": {}, "ours": ALL}
    for name, detail in DETAILS.items():
        cases[f"theirs with: {name}"] = detail
        cases[f"ours without: {name}"] = {
            k: v for k, v in ALL.items() if k not in detail
        }
    if o.quick:
        cases = {name: cases[name] for name in ("purejaxrl's", "ours")}
    found = {}
    for i, (name, changes) in enumerate(cases.items()):
        settings = dataclasses.asdict(dataclasses.replace(PUREJAXRL, **changes))
        settings |= {"total_steps": 8192} if o.quick else {}
        options = runs.Options(**settings, num_evals=122)
        of = lambda options=options, i=i: trained(
            f"cartpole-{i}", environments.cartpole(), options, o
        )
        found[name] = once(f"ablation-{i}", o, options, of)
    if o.purejaxrl:
        found["purejaxrl itself"] = once("purejaxrl", o, None, lambda: itself(o))
    return found


def itself(o: Options) -> dict[str, Any]:
    """purejaxrl's own program, its parameters evaluated as ours are."""
    command = [str(o.purejaxrl_python), str(PEERS), "purejaxrl", "--num-envs", "4"]
    command += ["--updates", "976", "--seeds", str(o.seeds), "--every", "8"]
    command += ["--checkout", str(o.purejaxrl)]
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


# Tables


def summary(learned: dict[str, Any], o: Options) -> str:
    """What was learned."""
    rows = []
    for name, found in learned.items():
        rows.append(
            {
                "environment": name,
                "steps": f"{found['steps'][-1]:,.0f}",
                "return": spread(found["final"]),
                "each seed": ", ".join(f"{x:.1f}" for x in found["final"]),
                "others": TASKS[name].others,
                "CPU s a seed": found["cpu_seconds"] / len(found["final"]),
            }
        )
    where = f"jaxppo's examples/control, {o.seeds} seeds, mean ± deviation over seeds"
    return f"{where}; {measure.machine()}.\n\n{measure.table(rows, rows[0])}\n\n{NOTES}"


NOTES = """\
Returns are of 100 fresh episodes of each seed under the sampled policy; on the host
(MuJoCo's) of the last 20 that were played. Others' numbers are their own reports, and
purejaxrl's were measured by its program, on gymnax 1.0.1. CPU seconds are of all of it:
compiling, training, evaluating on the way, a checkpoint each time."""


def spread(values: list[float]) -> str:
    """Mean and deviation (ddof 0)."""
    return f"{np.mean(values):.1f} ± {np.std(values):.1f}"


def first_solved(found: dict[str, Any]) -> list[float]:
    """Steps to the first evaluation at 475, for each seed; inf if there is none."""
    solved = np.array(found["returns"]) >= SOLVED
    steps = np.array(found["steps"])
    return [float(steps[s.argmax()]) if s.any() else np.inf for s in solved.T]


def ablation_summary(found: dict[str, Any]) -> str:
    """Steps to 475: from theirs to ours, and from ours back."""
    whole = [
        name for name in ("ours", "purejaxrl's", "purejaxrl itself") if name in found
    ]
    rows = []
    for name in whole + [name for name in found if name not in whole]:
        seeds = first_solved(found[name])
        rows.append(
            {
                "settings": name,
                "steps to 475": thousands(np.median(seeds)),
                "each seed": ", ".join(map(thousands, seeds)),
                "after all": spread(found[name]["final"]),
            }
        )
    end = found["ours"]["steps"][-1]
    theirs, ours = (
        np.minimum(np.median(first_solved(found[name])), end)
        for name in ("purejaxrl's", "ours")
    )
    text = (
        "CartPole-v1, 4 environments, 128 steps, two 64x64 tanh networks: steps to the "
        f"first evaluation (100 fresh episodes, every {found['ours']['steps'][0]:,} "
        f"steps) at {SOLVED}; medians. Theirs over ours: {theirs / ours:.1f}."
    )
    return f"{text}\n\n{measure.table(rows, rows[0])}"


def thousands(steps: Any) -> str:
    """As a cell."""
    return f"{steps:,.0f}" if np.isfinite(steps) else "never"


# Pictures


def line(axis: Any, found: dict[str, Any], color: str, label: str = "") -> None:
    """Mean over seeds, and its deviation."""
    steps, returns = np.array(found["steps"]), np.array(found["returns"])
    mean, deviation = returns.mean(1), returns.std(1)
    axis.plot(steps, mean, color=color, linewidth=1.8, label=label)
    axis.fill_between(
        steps, mean - deviation, mean + deviation, color=color, alpha=0.2, linewidth=0
    )


def tidy(axis: Any, title: str) -> None:
    """The same for all panels."""
    axis.set_title(title, loc="left", fontsize=10)
    axis.xaxis.set_major_formatter(lambda x, _: f"{x / 1e3:.0f}k")
    axis.grid(color="0.92", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def draw_tasks(learned: dict[str, Any], path: pathlib.Path) -> None:
    """A panel for each environment."""
    columns = min(4, len(learned))
    rows = -(-len(learned) // columns)
    figure, axes = plt.subplots(
        **{"nrows": rows, "ncols": columns, "squeeze": False},
        figsize=(max(3.0 * columns, 5), 2.6 * rows),
        layout="constrained",
    )
    for axis in axes.flat[len(learned) :]:
        axis.set_visible(False)
    for axis, (name, found) in zip(axes.flat, learned.items(), strict=False):
        line(axis, found, "tab:red")
        axis.axhline(TASKS[name].level, color="0.4", linewidth=0.9, linestyle=":")
        tidy(axis, name)
    figure.supxlabel("environment steps", fontsize=9)
    figure.supylabel("return: mean ± deviation over seeds", fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_ablation(found: dict[str, Any], path: pathlib.Path) -> None:
    """The curves of both, and what each detail does to either."""
    figure, (left, right) = plt.subplots(
        **{"nrows": 1, "ncols": 2, "figsize": (12, 4.4), "layout": "constrained"},
        width_ratios=[3, 4],
    )
    colors = {"ours": "tab:red", "purejaxrl's": "tab:blue", "purejaxrl itself": "0.4"}
    labels = {"ours": "ours", "purejaxrl's": "purejaxrl's settings in our loop"}
    for name, color in colors.items():
        if name in found:
            line(left, found[name], color, labels.get(name, name))
    left.axhline(SOLVED, color="0.4", linewidth=0.9, linestyle=":")
    left.legend(frameon=False, loc="lower right", fontsize=9)
    left.set_xlabel("environment steps")
    tidy(left, "CartPole-v1, 4 environments: return, mean ± deviation over seeds")

    shown = [name for name in DETAILS if f"ours without: {name}" in found]
    groups = {
        "purejaxrl's settings with": (
            "purejaxrl's",
            "theirs with: ",
            "tab:blue",
            -0.17,
        ),
        "ours without": ("ours", "ours without: ", "tab:red", 0.17),
    }
    end = found["ours"]["steps"][-1]
    slowest = 0.0
    for label, (base, prefix, color, shift) in groups.items():
        names = [base, *(prefix + name for name in shown)]
        for y, name in enumerate(names):
            seeds = np.minimum(first_solved(found[name]), end)
            slowest = max(slowest, *seeds)
            right.plot(
                seeds, [y + shift] * len(seeds), "o", color=color, ms=3, alpha=0.5
            )
            right.barh(
                *(y + shift, np.median(seeds), 0.3),
                **{"color": color, "alpha": 0.45, "label": label if y == 0 else None},
            )
    right.set_yticks(range(len(shown) + 1), ["nothing changed", *shown], fontsize=9)
    right.invert_yaxis()
    right.set_xlim(0, 1.3 * slowest)
    right.set_xlabel(f"environment steps, {end / 1e3:.0f}k at most")
    right.legend(frameon=False, fontsize=9, loc="center right")
    tidy(right, f"steps to {SOLVED}: median, and each seed")
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
