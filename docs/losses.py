"""Writes docs/losses.md and docs/losses/ from docstrings, formulas and recorded values.

python docs/losses.py
"""

import collections
import functools
import inspect
import json
import pathlib
import re
import tomllib
import types

import jax
import jax.numpy as jnp
import numpy as np

import jaxppo
from jaxppo import recipes

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGE = DOCS / "losses.md"
VALUES = ROOT / "tests/data/reference_values.json"
# LaTeX by the name of what it defines.
FORMULAS = tomllib.loads((DOCS / "formulas.toml").read_text("utf-8"))
# A page each: its file, its title, the files of jaxppo/ that it shows.
FAMILIES = {
    "ratios": ("Log-ratios", ["_ratio"]),
    "clipping": ("Policy terms that clip", ["_clipping"]),
    "weighting": ("Policy terms that weigh", ["_weighting"]),
    "trust_region": ("Policy terms that bound the distance", ["_trust_region"]),
    "covariance": ("Covariance", ["_covariance"]),
    "value": ("Value terms", ["_value"]),
    "distributional": ("Distributional critics", ["_distributional"]),
    "kl": ("KL: estimators and exact", ["_kl", "_head_divergences", "_head_kl"]),
    "aggregation": ("Aggregation", ["_aggregate"]),
    "advantages": ("Advantages along time", ["_advantages"]),
    "groups": ("Advantages over groups", ["_group", "_token_baseline"]),
    "rewards": ("Rewards and entropy", ["_rewards", "_entropy"]),
    "correction": ("Rollout correction", ["_correction", "_rollout"]),
    "heads": ("Heads", ["_heads", "_fused", "_selective"]),
}
POLICY = "clipping", "weighting", "trust_region"
TREE = "```{{toctree}}\n:hidden:\n\n{}\n```\n"
WRITTEN = (
    "<!-- Written by docs/{}.py from the docstrings: change those, and run it. -->"
)
HEAD = """\
# Every loss, and who agrees with whom

![every policy term and its gradient, against the ratio](gallery.png)

Above, the objective of one token; below, its pull on the token's log-probability
(`python3 run.py gallery` draws it). A page a family: the formula, the defaults, the
gradient, the paper, and whose losses have the term in them. What a term takes, returns
and raises is in its docstring: `help(jaxppo.cispo)`, or [the API](api.md). Named losses
are [recipes](recipes.md), those of 20 systems with
[the faults that they reproduce](recipes/faults.md).
"""
COMPOSITIONS = """\
What is not a function is a line of terms:

```python
import math

import jax
import jax.numpy as jnp
import jaxppo

# a batch of 8 answers of up to 5 tokens, two a prompt
noise = lambda seed, *shape: jax.random.normal(jax.random.key(seed), shape)
mask = jnp.arange(5)[None] < jnp.array([5, 3, 1, 0, 5, 4, 2, 5])[:, None]
finished = jnp.array([1, 0, 1, 0, 1, 0, 1, 0], bool)  # not cut short
theirs = (jnp.arange(8) < 2)[:, None] & mask  # written by another policy
old_log_probs = -2 + 0.1 * noise(0, 8, 5)
log_probs, rollout_log_probs, ref_log_probs = old_log_probs + 0.1 * noise(1, 3, 8, 5)
token_rewards, values, rewards = noise(2, 8, 5), noise(3, 8, 5), noise(4, 8)
advantages = jaxppo.group_advantages(rewards, group_size=2)[:, None]
eps, delta, kl_coef = 0.2, 4.0, 0.1
x = jaxppo.log_ratio(log_probs, old_log_probs, mask)  # policy and itself, before
d = jaxppo.log_ratio(old_log_probs, rollout_log_probs, mask)  # trainer and sampler

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
*Pull* is what the optimiser sees of a token: minus the loss's derivative by log pi, at
ratios {ratios} and the defaults shown. Where it is 0, the term
has let go of the token. (pi_old is 0.3; the sequence is that token.)
"""
AGREE = """\
## Who agrees with whom

Same loss and same gradient, to 1e-5, on the inputs of
`tests/data/reference_values.json`, as each system's own code computes them.
"""
RATIOS = (0.5, 0.9, 1.0, 1.1, 2.0)
SIGNS = "+1", "-1"


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


def pull(fn: types.FunctionType) -> list[list[str]]:
    """The gradient of a policy term by the log-prob, at a few ratios and both signs."""
    parameters = inspect.signature(fn).parameters
    needed = {k for k, p in parameters.items() if p.default is p.empty}
    known = {"log_ratio", "log_probs", "advantages"}
    if not needed <= known or "advantages" not in needed:
        return []
    both = []
    for sign in (1.0, -1.0):

        def objective(x, sign=sign):
            given = dict(log_ratio=x, log_probs=x + jnp.log(0.3))
            given["advantages"] = jnp.full(x.shape, sign)
            return -jnp.sum(fn(**{k: v for k, v in given.items() if k in needed}))

        x = jnp.log(jnp.array(RATIOS))[:, None]  # sequences of one token
        alone = jax.vmap(jax.grad(objective))(x)[:, 0]
        both.append([f"{v:.2g}" for v in np.asarray(alone) + 0.0])
    return both if any(v != "0" for values in both for v in values) else []


def members(rooms: list[str]) -> list[types.FunctionType]:
    """The public functions of some files of jaxppo/, in the order of the files."""
    fns = functions(jaxppo, "jaxppo._")
    return [x for room in rooms for x in fns if x.__module__ == f"jaxppo.{room}"]


def names_in(fn: types.FunctionType, seen: frozenset[str] = frozenset()) -> set[str]:
    """Names that a function's code reads, and those of the helpers beside it."""
    fn = inspect.unwrap(fn)  # the tests check its shapes
    codes = [fn.__code__]
    for code in codes:
        codes += [x for x in code.co_consts if isinstance(x, types.CodeType)]
    names = {name for code in codes for name in code.co_names}
    helpers = [fn.__globals__.get(name) for name in names - seen]
    helpers = [x for x in helpers if inspect.isfunction(x)]
    helpers = [x for x in helpers if x.__module__.startswith("jaxppo.recipes")]
    defaults = [p.default for p in inspect.signature(fn).parameters.values()]
    names |= {x.__name__ for x in defaults if inspect.isfunction(x)}
    return names.union(*(names_in(x, seen | names) for x in helpers))


@functools.cache
def users() -> dict[str, list[str]]:
    """By the name of a term, the recipes that have it in them."""
    every = {f"{s}.{k}": x for s, m in systems().items() for k, x in named(m).items()}
    every = named(recipes) | every
    found: dict[str, list[str]] = {}
    for recipe, fn in every.items():
        for name in sorted(names_in(fn)):
            found.setdefault(name, []).append(recipe)
    return found


def linked(among: list[str]) -> str:
    """Recipes, by the page that has them."""
    by: dict[str, list[str]] = {}
    for recipe in among:
        system, _, name = recipe.partition(".")
        by.setdefault(system if name else "methods", []).append(name or system)
    return "; ".join(
        f"[{page}](../recipes/{page}.md) " + ", ".join(f"`{name}`" for name in names)
        for page, names in by.items()
    )


def named(module: types.ModuleType) -> dict[str, types.FunctionType]:
    """A module's recipes by name, those of a module in it by `module.name`."""
    found = {x.__name__: x for x in functions(module, "jaxppo.recipes")}
    if module is recipes:
        return found
    for name, inner in vars(module).items():
        is_own = getattr(inner, "__name__", "") == f"{module.__name__}.{name}"
        if inspect.ismodule(inner) and is_own and name[0] != "_":
            found |= {f"{name}.{k}": x for k, x in named(inner).items()}
    return found


def term(fn: types.FunctionType, family: str) -> list[str]:
    """A function's part of its family's page."""
    summary = cell(" ".join(paragraphs(fn)[:1]))
    name = fn.__name__
    lines = [f"## `{name}`\n", summary, "", f"$$\n{FORMULAS[name].strip()}\n$$", ""]
    if shown := defaults(fn):
        lines += [f"- Defaults: {shown}."]
    if found := papers(fn):
        lines += [f"- Paper: {found}."]
    if among := users().get(name):
        lines += [f"- In recipes: {linked(among)}."]
    lines += [f"- [In full](../api/{family}.md#{name})", ""]
    if family in POLICY and (both := pull(fn)):
        lines += [row(["ratio", *map(str, RATIOS)]), row(["---"] * (len(RATIOS) + 1))]
        lines += [row([f"pull, A = {a}", *x]) for a, x in zip(SIGNS, both, strict=True)]
        lines += [""]
    return lines


def family_page(family: str) -> str:
    """One family's terms."""
    title, rooms = FAMILIES[family]
    out = [WRITTEN.format("losses"), f"# {title}\n"]
    out += [PULL.format(ratios=", ".join(map(str, RATIOS)))] * (family in POLICY)
    for fn in members(rooms):
        out += term(fn, family)
    return "\n".join(out).rstrip() + "\n"


def row(cells: list[str]) -> str:
    """A line of a table."""
    return f"| {' | '.join(cells)} |"


def systems() -> dict[str, types.ModuleType]:
    """The modules of recipes, by name."""
    modules = sorted((k, v) for k, v in vars(recipes).items() if inspect.ismodule(v))
    return {
        k: v for k, v in modules if v.__name__ == f"jaxppo.recipes.{k}" and k[0] != "_"
    }


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


def index() -> str:
    """The page of all families."""
    out = [WRITTEN.format("losses"), HEAD, row(["family", "terms"]), row(["---"] * 2)]
    for family, (title, rooms) in FAMILIES.items():
        terms = ", ".join(f"`{x.__name__}`" for x in members(rooms))
        out += [row([f"[{title}](losses/{family}.md)", terms])]
    out += ["\n## Compositions\n", COMPOSITIONS]
    out += [AGREE]
    out += [row(["loss", "sum of abs(gradient)", "the same"]), row(["---"] * 3)]
    out += [*classes(), "", TREE.format("\n".join(f"losses/{x}" for x in FAMILIES))]
    return "\n".join(out)


def pages() -> dict[pathlib.Path, str]:
    """Every page that this file writes."""
    families = {
        DOCS / f"losses/{family}.md": family_page(family) for family in FAMILIES
    }
    return {PAGE: index()} | families


def write(pages: dict[pathlib.Path, str]) -> None:
    """Leaves nothing in their folders but these pages."""
    for folder in {page.parent for page in pages} - {DOCS}:
        folder.mkdir(exist_ok=True)
        for old in set(folder.glob("*.md")) - set(pages):
            old.unlink()
    for path, text in pages.items():
        path.write_text(text, "utf-8")
    print(f"Written: {len(pages)} pages")


if __name__ == "__main__":
    write(pages())
