"""Writes docs/losses.md from the docstrings, the recipes and the reference values.

python docs/losses.py
"""

import collections
import functools
import inspect
import json
import pathlib
import re
import types

import jax
import jax.numpy as jnp
import numpy as np

import jaxppo
from jaxppo import recipes

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / "docs/losses.md"
VALUES = ROOT / "tests/data/reference_values.json"
ROOMS = {
    "_clipping": "Policy terms that clip",
    "_weighting": "Policy terms that weigh",
    "_trust_region": "Policy terms that bound the distance",
    "_covariance": "Covariance",
    "_value": "Value terms",
    "_distributional": "Distributional critics",
    "_kl": "KL estimators",
    "_ratio": "Log-ratios",
    "_aggregate": "Aggregation",
    "_advantages": "Advantages along time",
    "_group": "Advantages over groups",
    "_token_baseline": "Baselines of tokens",
    "_rewards": "Rewards",
    "_correction": "Rollout correction: weights and masks",
    "_rollout": "Rollout correction: metrics",
    "_entropy": "Entropy",
    "_heads": "Heads",
    "_head_divergences": "Exact divergences of heads",
}
HEAD = """\
<!-- Written by docs/losses.py from the docstrings: change those, and run it. -->
# Every loss, and who agrees with whom

![every policy term and its gradient, against the ratio](gallery.png)

Above, the objective of one token; below, its pull on the token's log-probability
(`python3 run.py gallery` draws it). What a term takes, returns and raises is in its
docstring: `help(jaxppo.cispo)`.
"""
COMPOSITIONS = """\
What is not a function is a line of terms. With
`x = jaxppo.log_ratio(log_probs, old_log_probs, mask)` and
`d = jaxppo.log_ratio(old_log_probs, rollout_log_probs, mask)`:

```python
# INTELLECT-2's two-sided clip: delta caps the ratio on both sides, eps as in PPO
two_sided = jaxppo.clipped_surrogate(
    x,
    advantages,
    clip_eps=eps,
    clip_eps_high=min(eps, delta - 1),
    dual_clip=max(delta, 1 + eps),
)
# rejected tokens stay in the denominator ("original"), or leave it ("kept")
kept = jaxppo.rejection_mask(jaxppo.kl_k3(d), mask, high=0.02)
original = jaxppo.token_mean(jnp.where(kept, two_sided, 0), mask)
shrunk = jaxppo.token_mean(two_sided, mask & kept)
# reject sequences by a statistic of theirs: mean, sum or maximum; a veto by one token
mean = jaxppo.masked_mean(jaxppo.kl_k3(d), mask, axis=-1, keepdims=True)
by_mean = jaxppo.rejection_mask(mean, mask, high=0.01)
farthest = jaxppo.masked_max(-d, mask, axis=-1, keepdims=True)
veto = jaxppo.rejection_mask(farthest, mask, high=-math.log(1e-4))
# sequence-gated truncated importance sampling: the mean's gate, the tokens' weights
gate = jaxppo.band_weights(
    jaxppo.sequence_log_ratio(old_log_probs, rollout_log_probs, mask),
    low=0.99,
    high=1.01,
)
gated = jnp.where(gate > 0, jaxppo.truncated_weights(d, cap=2.0), 0)
# importance weights of whole sequences (the product), or of turns (the geometric mean)
products = jaxppo.truncated_weights(
    jaxppo.trajectory_log_ratio(old_log_probs, rollout_log_probs, mask)
)
turns = jaxppo.truncated_weights(
    jaxppo.segment_log_ratio(old_log_probs, rollout_log_probs, mask)
)
# a KL penalty in the reward, not in the loss
penalised = token_rewards - kl_coef * jax.lax.stop_gradient(
    jaxppo.kl_k1(jaxppo.log_ratio(old_log_probs, ref_log_probs, mask))
)
# GRPO by the batch's standard deviation; rewards clipped; answers cut short left out
centred = jaxppo.group_advantages(
    jnp.clip(rewards, -5, 5), group_size=2, scale_by_std=False
)
by_batch = centred / (jnp.sqrt(jaxppo.masked_variance(rewards, ddof=1)) + 1e-4)
finished_only = mask & finished[:, None]
# GAE's two other readings of holes in the mask: steps like any other; steps of reward 0
# and value 0 that discount as they pass
as_steps = jaxppo.gae(token_rewards, values, 0.99)
as_zeros = jaxppo.gae(
    jnp.where(mask, token_rewards, 0), jnp.where(mask, values, 0), 0.99
)
# TD(lambda) targets
targets = jaxppo.gae(token_rewards, values, 0.99, lambda_=0.9, mask=mask).returns
# demonstrations beside rollouts (LUFFY), each token by who wrote it
mixed = jnp.where(
    theirs, jaxppo.shaped_off_policy(log_probs, advantages, mask), two_sided
)
# a term with its own denominator: add values, not `Mean`s (or give `learner` a dict)
sft = jaxppo.token_mean(-log_probs, mask & theirs)
total = original.value + 0.1 * sft.value
```
"""
PULL = """\
*Pull on log pi* is what the optimiser sees of a token, minus the loss's derivative, at
ratios {ratios}, for A = +1 / A = -1, at the defaults shown: where it is 0, the term
has let go of the token. (pi_old is 0.3.)
"""
SYSTEMS = """\
`jaxppo.recipes.verl.vanilla(...)`: what that version of the system computes, where its
docstring says nothing else; what is masked has no say. More than half are
compared with values the systems gave (`tests/parity/`), the others with formulas
written out from their code (`tests/test_recipe_oracles.py`, `test_control_parity.py`).
"""
RATIOS = (0.5, 0.9, 1.0, 1.1, 2.0)


def functions(module: types.ModuleType, home: str = "") -> list[types.FunctionType]:
    """Public functions, in the order of their file."""
    found = [x for x in vars(module).values() if inspect.isfunction(x)]
    public = [x for x in found if x.__name__[0] != "_" and home in x.__module__]
    return sorted(public, key=lambda x: (x.__module__, inspect.getsourcelines(x)[1]))


def paragraphs(x: object) -> list[str]:
    """The paragraphs of a docstring, each on one line."""
    doc = (inspect.getdoc(x) or "").split("\nArgs:")[0]
    return [" ".join(part.split()) for part in doc.split("\n\n") if part.strip()]


def cell(text: str) -> str:
    """Text that may stand in a table."""
    return text.replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;")


def defaults(fn: types.FunctionType) -> str:
    """A function's hyper-parameters, as it is called without them."""
    keywords = [
        p for p in inspect.signature(fn).parameters.values() if p.kind is p.KEYWORD_ONLY
    ]
    shown = [
        p.name if p.default is p.empty else f"{p.name}={plain(p.default)}"
        for p in keywords
    ]
    return f"`{', '.join(shown)}`" if shown else ""


def plain(value: object) -> str:
    """A default as one would write it."""
    if isinstance(value, functools.partial):
        given = [f"{k}={plain(v)}" for k, v in value.keywords.items()]
        return f"{plain(value.func)}({', '.join(given)})"
    return getattr(value, "__name__", None) or f"{value}"


def papers(fn: types.FunctionType) -> str:
    """Links to the papers a docstring names."""
    found = dict.fromkeys(re.findall(r"arXiv:(\d+\.\d+)", inspect.getdoc(fn) or ""))
    return ", ".join(f"[{x}](https://arxiv.org/abs/{x})" for x in found)


def pull(fn: types.FunctionType) -> str:
    """The gradient of a policy term by the log-prob, at a few ratios and both signs."""
    parameters = inspect.signature(fn).parameters
    needed = {k for k, p in parameters.items() if p.default is p.empty}
    if (
        not needed <= {"log_ratio", "log_probs", "advantages"}
        or "advantages" not in needed
    ):
        return ""
    both = []
    for sign in (1.0, -1.0):

        def objective(x, sign=sign):
            given = dict(log_ratio=x, log_probs=x + jnp.log(0.3))
            given["advantages"] = jnp.full(x.shape, sign)
            return -jnp.sum(fn(**{k: v for k, v in given.items() if k in needed}))

        x = jnp.log(jnp.array(RATIOS))
        alone = jax.vmap(jax.grad(objective))(x[:, None])[
            :, 0
        ]  # sequences of one token
        both.append(" ".join(f"{v:.2g}" for v in np.asarray(alone) + 0.0))
    return " / ".join(both) if any(re.search("[1-9]", row) for row in both) else ""


def room(name: str, title: str) -> list[str]:
    """A table of one file's functions."""
    fns = [x for x in functions(jaxppo, "jaxppo._") if x.__module__.endswith(name)]
    policy = name in ("_clipping", "_weighting", "_trust_region")
    columns = ["", "what", "defaults", *["pull on log pi"] * policy, "paper"]
    lines = [f"\n### {title}\n", row(columns), row(["---"] * len(columns))]
    for fn in fns:
        what = cell(" ".join(paragraphs(fn)[:1]))
        cells = [
            f"`{fn.__name__}`",
            what,
            defaults(fn),
            *[pull(fn)] * policy,
            papers(fn),
        ]
        lines.append(row(cells))
    return lines


def row(cells: list[str]) -> str:
    """A line of a table."""
    return f"| {' | '.join(cells)} |"


def systems() -> dict[str, types.ModuleType]:
    """The modules of recipes, by name."""
    modules = sorted((k, v) for k, v in vars(recipes).items() if inspect.ismodule(v))
    return {
        k: v for k, v in modules if v.__name__ == f"jaxppo.recipes.{k}" and k[0] != "_"
    }


def recipe_table(fns: list[types.FunctionType]) -> list[str]:
    """A table of recipes: what, at which defaults, and the paper if it is named."""
    lines = [row(["", "what", "defaults", "paper"]), row(["---"] * 4)]
    for fn in fns:
        what = cell(" ".join(paragraphs(fn)[:1]))
        lines.append(row([f"`{fn.__name__}`", what, defaults(fn), papers(fn)]))
    return lines


def faults() -> list[str]:
    """What recipes say of the faults they reproduce."""
    lines = []
    for system, module in systems().items():
        for fn in functions(module, "jaxppo.recipes"):
            text = " ".join(paragraphs(fn))
            for fault in re.findall(r"Fault: (.*?)(?=Fault: |$)", text):
                lines.append(f"- `{system}.{fn.__name__}`: {cell(fault.strip())}")
    return lines


def classes() -> list[str]:
    """Systems whose recorded loss and gradient are the same, to 1e-5."""
    outputs = json.loads(VALUES.read_text("utf-8"))["outputs"]
    same = collections.defaultdict(list)
    for name, x in outputs.items():
        if "grad" in x:
            size = float(np.sum(np.abs(x["grad"])))
            same[round(x["value"], 5), round(size, 4)].append(name)
    ordered = sorted(same.items(), key=lambda item: (-len(item[1]), item[0]))
    return [
        row([f"{value:.5f}", f"{size:.4f}", " = ".join(f"`{n}`" for n in names)])
        for (value, size), names in ordered
        if len(names) > 1
    ]


def page() -> str:
    """The whole page."""
    out = [HEAD, "## Terms\n", PULL.format(ratios=", ".join(map(str, RATIOS)))]
    for name, title in ROOMS.items():
        out += room(name, title)
    out += ["\n## Compositions\n", COMPOSITIONS]
    out += ["\n## Methods, by their papers' names\n"]
    out += ["`jaxppo.recipes.dapo(...)`: composed of the terms. Docstrings say where a"]
    out += ["default is not the paper's.\n"]
    out += recipe_table(functions(recipes, "jaxppo.recipes._methods"))
    out += ["\n## Systems\n"]
    out += [SYSTEMS]
    for system, module in systems().items():
        out += [f"\n### {system}\n", " ".join(paragraphs(module)), ""]
        out += recipe_table(functions(module, "jaxppo.recipes"))
    out += ["\n## Faults that recipes reproduce\n", *faults()]
    out += ["\n## Who agrees with whom\n"]
    out += ["Same loss and same gradient, to 1e-5, on the inputs of"]
    out += [
        "`tests/data/reference_values.json`, as each system's own code computes them.\n"
    ]
    out += [
        row(["loss", "sum of abs(gradient)", "the same"]),
        row(["---"] * 3),
        *classes(),
    ]
    return "\n".join(out) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
    print(f"Written: {PAGE.relative_to(ROOT)}")
