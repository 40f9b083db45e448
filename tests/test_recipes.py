"""Recipes are compositions that could stand in a user's file: public names only."""

import ast
import inspect
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity.comparison import TABLES, batch, read

import jaxppo
from jaxppo import recipes

HERE = Path(__file__).parent
PACKAGE = Path(recipes.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
SYSTEMS = {name: x for name, x in vars(recipes).items() if inspect.ismodule(x)}
SYSTEMS = {
    name: x
    for name, x in SYSTEMS.items()
    if x.__name__ == f"jaxppo.recipes.{name}" and name[0] != "_"
}


def functions(module):
    """Its public functions; those of a public module of it by `module.function`."""
    found = {k: x for k, x in vars(module).items() if k[0] != "_"}
    own = {k: x for k, x in found.items() if inspect.isfunction(x)}
    for name, inner in found.items():
        if inspect.ismodule(inner) and inner.__name__ == f"{module.__name__}.{name}":
            own |= {f"{name}.{k}": x for k, x in functions(inner).items()}
    return own


RECIPES = {f"{s}.{k}": x for s, m in SYSTEMS.items() for k, x in functions(m).items()}
METHODS = {k: x for k, x in vars(recipes).items() if inspect.isfunction(x)}
RECIPES |= {k: x for k, x in METHODS.items() if k[0] != "_"}
each_recipe = pytest.mark.parametrize("name", RECIPES)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_recipes_are_made_of_public_names(path):
    allowed = {
        "jaxppo",
        "jax",
        "jaxtyping",
        "functools",
        "math",
        "collections",
        "typing",
    }
    source = path.read_text()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            assert {a.name.split(".")[0] for a in node.names} <= allowed
        if isinstance(node, ast.ImportFrom) and not node.level:
            assert node.module.split(".")[0] in allowed
            assert not node.module.startswith("jaxppo._")
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1  # of its own package
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert node.value.id != "jaxppo" or node.attr[0] != "_"
    assert len(source.splitlines()) <= 400


def test_every_system_is_there():
    assert {
        *("verl", "openrlhf", "trl", "liger", "tunix", "nemo", "skyrl", "areal"),
        *("slime", "prime_rl", "open_instruct", "roll"),
        *("purejaxrl", "cleanrl", "sb3", "sbx", "torchrl", "stoix", "rllib", "rlax"),
    } == set(SYSTEMS)


@each_recipe
def test_it_says_what_it_is(name):
    recipe = RECIPES[name]
    doc = inspect.getdoc(recipe)
    assert doc and doc.isascii()
    summary = doc.splitlines()[0]
    assert summary.endswith(".") or summary.endswith(":")
    parameters = inspect.signature(recipe).parameters.values()
    for p in parameters:
        assert p.annotation is not p.empty, p.name
        assert p.default is p.empty or p.kind is p.KEYWORD_ONLY or p.name == "mask"


def named(path, system):
    """What a file names of a system's recipes: `system.recipe`, by attribute."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        parts = []
        while isinstance(node, ast.Attribute):
            parts, node = [node.attr, *parts], node.value
        if isinstance(node, ast.Name) and node.id in (system, f"{system}_recipes"):
            found.add(".".join(parts))
    return found


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_recipe_is_tested(system):
    """By a recorded value, or by a test that exists and that calls it."""
    path = HERE / f"parity/{system}.py"
    table = {x.__name__: x for x in TABLES}.get(f"parity.{system}")
    elsewhere = getattr(table, "UNREFERENCED", {})
    path = path if table else HERE / "test_control_parity.py"
    used = named(path, system) & functions(SYSTEMS[system]).keys()
    assert functions(SYSTEMS[system]).keys() == used | elsewhere.keys()
    assert not used & elsewhere.keys()
    for name, where in elsewhere.items():
        file, test = where.split("::")
        tree = ast.parse((HERE / file).read_text())
        defined = {x.name for x in tree.body if isinstance(x, ast.FunctionDef)}
        assert test in defined and test.startswith("test_"), where
        assert name in named(HERE / file, system), where


# --- all of them, called by the names of their parameters ---

B = batch(read(Path(__file__).parent / "data/reference_values.json")["inputs"])
TOKENS = jnp.ones_like(B.old)
REWARDS = jnp.sum(jnp.where(B.mask, B.token_rewards, 0), 1)  # of samples
GIVEN = vars(B) | dict(
    log_probs=B.logp,
    old_log_probs=B.old,
    rollout_log_probs=B.rollout,
    ref_log_probs=B.ref,
    teacher_log_probs=B.ref,
    advantages=B.adv * TOKENS,
    baseline=jnp.float32(0.1),
    baselines=REWARDS / 2,
    beta=1.0,
    clip_eps=0.2,
    correct=B.adv > 0,
    group_ids=B.group,
    high=1.2,
    key=jax.random.key(0),
    kl=jnp.abs(B.logp - B.ref),
    kl_coef=0.1,
    lengths=jnp.sum(B.mask, 1),
    output_tokens=jnp.sum(B.mask, 1),
    input_tokens=jnp.arange(len(B.mask)),
    turns=jnp.arange(len(B.mask)) % 3,
    log_ratio=B.logp - B.old,
    low=0.8,
    max_length=8,
    norm=3.0,
    off_policy=B.adv > 0.5,
    option="token_k2",
    per_token=B.old,
    rewards=REWARDS,
    scores=B.adv * TOKENS,
    statistic=(B.old - B.rollout) ** 2 / 2,
    threshold=0.01,
    weights=jnp.exp(B.old - B.rollout),
    x=B.values,
)
SHARES = jnp.array([0.7, 0.3])
TWO = jnp.stack([REWARDS, REWARDS**2])
OWN = {
    "gdpo_advantages": dict(rewards=TWO, weights=SHARES),
    "nemo.gdpo_advantages": dict(rewards=TWO, component_weights=SHARES),
    "trl.gdpo_advantages": dict(rewards=TWO.T, reward_coefs=SHARES),
    "verl.gdpo": dict(
        rewards=jnp.stack([B.token_rewards, B.token_rewards**2]), weights=SHARES
    ),
    "ema_baseline": dict(mask=jnp.any(B.mask, 1) & (B.group > 0)),
    "trl.rloo": dict(advantages=B.adv),
    "verl.combined": dict(rejections=(B.rollout > -1, {})),
}
BY_TOKEN = "roll.gae roll.reinforce_advantages tunix.gae vapo_advantages".split()
BY_TOKEN += ["reinforce_pp_advantages", *(k for k in RECIPES if k.startswith("verl."))]
OPTIONAL = "mask", "weights", "group_size"


def given(name):
    """Arguments by the names of parameters."""
    rewards = dict(rewards=B.token_rewards) if name in BY_TOKEN else {}
    return GIVEN | rewards | OWN.get(name, {})


def call(name, **more):
    """A recipe of what it must be given, and of what it may be that is named here."""
    parameters = inspect.signature(RECIPES[name]).parameters
    one_of_two = "group_size" if "group_size" in parameters else "group_ids"
    wanted = [
        p
        for p in parameters.values()
        if p.default is p.empty or p.name in (*OPTIONAL, *more)
        if p.name not in ("group_size", "group_ids") or p.name == one_of_two
    ]
    values = given(name) | more
    by_name = [p for p in wanted if p.kind is p.KEYWORD_ONLY]
    return RECIPES[name](
        *(values[p.name] for p in wanted if p not in by_name),
        **{p.name: values[p.name] for p in by_name},
    )


def same(got, expected):
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(x, y)


def having(*names):
    return [
        k for k in RECIPES if {*names} & {*inspect.signature(RECIPES[k]).parameters}
    ]


@pytest.mark.parametrize("name", having("mask"))
def test_nonzero_counts(name):
    mask = given(name)["mask"]
    integers = jnp.where(mask, jnp.arange(2, 2 + mask.shape[-1]), 0)
    same(call(name, mask=integers), call(name))


LEARNED = {"log_probs", "values", "entropy", "logits"} & {*GIVEN}
PAIR = inspect.signature(recipes.dapo).return_annotation  # a loss and metrics
REPORTING = [
    k
    for k in having(*LEARNED)
    if inspect.signature(RECIPES[k]).return_annotation == PAIR
]


@pytest.mark.parametrize("name", REPORTING)
def test_what_is_reported_is_not_learned(name):
    """Metrics pass no gradient on, whatever they are added to."""
    own = LEARNED & {*inspect.signature(RECIPES[name]).parameters}
    arguments = {k: jnp.asarray(given(name)[k]) for k in own}

    def reported(arguments):
        leaves = jax.tree.leaves(call(name, **arguments)[1])
        return sum((jnp.sum(x.astype(jnp.float32)) for x in leaves), jnp.zeros(()))

    for grad in jax.tree.leaves(jax.jit(jax.grad(reported))(arguments)):
        np.testing.assert_array_equal(grad, 0)


def test_trls_coefficient_is_itself_over_microbatches():
    coef = recipes.trl.entropy_bonus(B.entropy, B.mask, entropy_coef=0.25)[1][
        "entropy_coef"
    ]
    assert coef.value == (coef + coef).value == 0.25


LOGS = "log_probs old_log_probs rollout_log_probs ref_log_probs teacher_log_probs"
# Systems that hold no log-ratio: what is farther than 45 nats still counts for more.
UNGUARDED = """
areal.clamp_sequences_by_ratio areal.clamp_tokens areal.ppo
areal.reject_sequences_by_ratio areal.reject_tokens_by_ratio areal.sapo
areal.sequence_ppo areal.sequence_sapo cispo dppo_kl dppo_tv dro ipo kimi
liger.bias_corrected_kl liger.bnpo liger.cispo liger.dapo liger.dr_grpo liger.grpo
liger.gspo liger.kl liger.luspo nemo.cispo nemo.diagnostics
nemo.distillation_advantages nemo.gspo nemo.importance_weights nemo.off_policy_kl
nemo.ppo nemo.sequence_weights nemo.truncated_weights open_instruct.cispo
open_instruct.dapo open_instruct.kl4 openrlhf.clip_weights openrlhf.divergence_weights
openrlhf.gspo openrlhf.mask_weights openrlhf.ppo openrlhf.sequence_divergence_weights
openrlhf.sequence_mask_weights prime_rl.default prime_rl.ipo prime_rl.ref_kl
rlax.clipped_surrogate_pg_loss roll.cispo roll.cispo_unified roll.kimi15 roll.kl
roll.kl_abs roll.kl_mse roll.ppo roll.ppo_sequence roll.ppo_token_mean
roll.probability_difference roll.tis roll.topr roll.train_infer_metrics roll.vanilla
skyrl.cispo skyrl.clip_cov skyrl.gspo skyrl.importance_sampling skyrl.kl skyrl.kl_cov
skyrl.tinker.cispo skyrl.tinker.importance_sampling skyrl.tinker.ppo slime.cispo
slime.gspo slime.icepop slime.kl slime.ppo slime.tis slime.unbiased_kl topr
torchrl.cispo torchrl.clip_ppo torchrl.grpo torchrl.kl_to_ref torchrl.klpen_ppo
trl.bias_corrected_kl trl.bnpo trl.cispo trl.dapo trl.dr_grpo trl.gmpo trl.grpo
trl.gspo trl.kl trl.luspo trl.penalised_rewards trl.rloo trl.sequence_mask
trl.sequence_truncate trl.token_mask trl.token_truncate tunix.grpo tunix.gspo_token
tunix.kl tunix.low_var_kl tunix.mse_kl tunix.ppo verl.abs_kl verl.cispo verl.clip_cov
verl.dppo_kl verl.dppo_tv verl.dro verl.geo_mean verl.gspo verl.k1 verl.k1_plus
verl.k2 verl.kl_cov verl.off_policy_metrics verl.reinforce
"""
HELD_AT_40 = "open_instruct.kl1 open_instruct.kl2 open_instruct.kl3"
# A ratio that is bounded once more, or only compared: of its second part no more shows.
BOUNDED = """
cispo dppo_kl liger.cispo nemo.off_policy_kl open_instruct.kl4 skyrl.cispo
skyrl.tinker.cispo topr trl.cispo verl.cispo verl.dppo_kl verl.dppo_tv
"""


def pairs_of(name):
    """Of log-probs, those whose ratio a recipe takes."""
    parameters = inspect.signature(RECIPES[name]).parameters
    own = [k for k in LOGS.split() if k in parameters]
    return [k for k in own if parameters[k].default is inspect.Parameter.empty]


# Of areal.loglinear_log_probs, what is between two policies is asked for, not a ratio.
RATIOS = [k for k in RECIPES if len(pairs_of(k)) > 1 and "loglinear" not in k]


@pytest.mark.parametrize("name", RATIOS)
def test_guards_are_the_systems_own(name):
    """A token 35, 45 and 65 nats farther, up and down, good and bad, by each part."""
    at = tuple(np.argwhere(np.asarray(B.mask))[0])
    bad = {"advantages": -jnp.abs(given(name)["advantages"]) - 0.1}
    signs = [{}, bad] if name in having("advantages") else [{}]

    def differ(far, farther, key, sign, more):
        outs = [
            call(name, **{key: given(name)[key].at[at].add(sign * by)}, **more)
            for by in (far, farther)
        ]
        leaves = zip(*map(jax.tree.leaves, outs), strict=True)
        return not all(np.array_equal(x, y, equal_nan=True) for x, y in leaves)

    reach = lambda *by: [
        key
        for key in pairs_of(name)
        if any(differ(*by, key, sign, more) for sign in (1.0, -1.0) for more in signs)
    ]
    seen = pairs_of(name) if name in UNGUARDED.split() else []
    assert reach(45.0, 65.0) == (seen[:-1] if name in BOUNDED.split() else seen)
    if name in HELD_AT_40.split():
        assert reach(35.0, 45.0)


NO_FACTOR = "liger.vespo", "gdpo_advantages"  # weights of ratios, and of rewards
WEIGHED = [k for k in having("weights") if k not in NO_FACTOR]
WEIGHED = [
    k for k in WEIGHED if "advantages" in inspect.signature(RECIPES[k]).parameters
]


@pytest.mark.parametrize("name", WEIGHED)
def test_a_loss_is_as_large_as_its_weights(name):
    once, twice = (call(name, weights=w * TOKENS)[0].value for w in (1.0, 2.0))
    assert once != 0
    np.testing.assert_allclose(twice, 2 * once, rtol=1e-6)


# The others' callers detach them.
DETACHING = "areal", "open_instruct", "openrlhf", "roll"


@pytest.mark.parametrize("name", [k for k in WEIGHED if k.startswith(DETACHING)])
def test_a_loss_does_not_learn_its_weights(name):
    grad = jax.grad(lambda weights: call(name, weights=weights)[0].value)(TOKENS)
    np.testing.assert_array_equal(grad, 0)


NUMBERED = {
    name: {p.name: p.default for p in inspect.signature(f).parameters.values()}
    for name, f in RECIPES.items()
}
NUMBERED = {
    name: {k: x for k, x in found.items() if type(x) in (int, float)}
    for name, found in NUMBERED.items()
}
# Controllers, and what takes more; their own tests have other numbers.
NUMBERED = {
    name: numbers
    for name, numbers in NUMBERED.items()
    if numbers and not name.endswith(("_control", "klpen_coef", "adaptive_kl"))
    if name not in ("ppo_penalty_coef", "prime_rl.rae_advantages", "torchrl.gae")
    if name not in ("cleanrl.rpo_mean", "sb3.bootstrapped")
    if not name.startswith("rlax.vtrace")
}
# Bounds of a covariance that no token of this batch has, and of what is not given.
UNBOUND = "skyrl.clip_cov.fraction", "skyrl.clip_cov.high", "verl.clip_cov.low"
UNBOUND += "clip_cov.low", "open_instruct.dapo.kl_coef", "open_instruct.cispo.kl_coef"


def others(x):
    """Numbers to try in a default's place, some of which may be out of its range."""
    return (x / 10 + 0.003, x / 1000, 0.9, 0.999, 1.05) if abs(x) < INF else ENDS


INF, ENDS = float("inf"), (0.5, 1.01, 1e-3, 0.99)


@pytest.mark.parametrize("name", NUMBERED)
def test_every_number_counts(name):
    """None is left to the default of what the recipe is made of."""
    parameters = inspect.signature(RECIPES[name]).parameters
    more = dict(ref_log_probs=B.ref, old_values=B.old_values)
    more = {k: x for k, x in more.items() if k in parameters}

    def learned(**numbers):  # what is only logged may depend on less
        out = call(name, **more, **numbers)
        logged = isinstance(out, tuple) and isinstance(out[-1], dict)
        return jax.tree.leaves(out[:-1] if logged else out)

    expected = learned()

    def changes(k, x):
        try:
            found = learned(**{k: x})
        except ValueError:
            return False
        return any(np.any(x != y) for x, y in zip(found, expected, strict=True))

    for k, default in NUMBERED[name].items():
        tried = any(changes(k, x) for x in others(default))
        assert tried or f"{name}.{k}" in UNBOUND, k


# --- a constant is no signal ---

SIZES = np.float32([0.1, 0.3, 0.7, *np.logspace(-5.9, 9, 61)])  # -1e-6: MaxRL's pole
SIZES = jnp.asarray(np.concatenate([SIZES, -SIZES]))
WHITENED = """
areal.batch_normalised areal.group_centred areal.group_normalised nemo.gae
nemo.raw_reward_advantages openrlhf.gae openrlhf.reinforce_advantages openrlhf.whiten
reinforce_pp_advantages rllib.normalised roll.masked_whiten skyrl.gae
skyrl.reinforce_plus_plus_advantages slime.whitened stoix.standardised
torchrl.standardized tunix.gae tunix.masked_whiten verl.gae verl.reinforce_plus_plus
""".split()
NOT_OF_REWARDS = """
areal.group_centred areal.group_normalised skyrl.prompt_mean
verl.optimal_token_baseline verl.tir_optimal_token_baseline
""".split()
GROUPED = [k for k in having("group_size", "group_ids") if k not in NOT_OF_REWARDS]
GROUPED.append("openrlhf.flash_reinforce_advantages")


def advantages(out):
    return out.advantages if isinstance(out, jaxppo.Advantages) else out


@pytest.mark.parametrize("name", WHITENED)
def test_constant_tokens_are_whitened_to_zero(name):
    """Not to rounding times 1e4, over the square root of 1e-8."""
    forgetful = dict.fromkeys(["gamma", "lambda_", "lambda_value", "discount"], 0.0)

    def whitened(c):
        all_c = jnp.full_like(B.old, c)
        equal = dict.fromkeys(["x", "advantages", "token_rewards"], all_c)
        equal |= dict(
            values=0 * all_c, rewards=jnp.full_like(given(name)["rewards"], c)
        )
        if name == "openrlhf.reinforce_advantages":
            equal |= dict(rewards=0 * REWARDS, kl=all_c, kl_coef=1.0)
        return advantages(call(name, **equal, **forgetful))

    np.testing.assert_array_equal(jax.vmap(whitened)(SIZES), 0)


@pytest.mark.parametrize("name", GROUPED)
def test_groups_of_equal_rewards_get_zero(name):
    def of_equals(c):
        rewards = jnp.full_like(given(name)["rewards"], c)
        once = jnp.zeros_like(B.old).at[:, 0].set(c)  # at a token that counts
        if rewards.shape[-2:] == once.shape:
            rewards = jnp.broadcast_to(once, rewards.shape)
        equal = dict(rewards=rewards, token_rewards=once, kl=0 * B.old)
        counts = "lengths", "output_tokens", "input_tokens", "turns"
        equal |= {k: jnp.full_like(GIVEN[k], 7) for k in counts}
        return advantages(call(name, **equal))

    np.testing.assert_array_equal(jax.vmap(of_equals)(SIZES), 0)


# --- what a system reports, or refuses ---


def test_slimes_truncation_has_its_own_name():
    """mis.py: "truncate" reports one share, "clip", which has a floor, two."""
    x = jnp.where(B.mask, B.old - B.rollout, 0)
    low, high = (jnp.quantile(x[B.mask], jnp.float32(q)) for q in (0.2, 0.7))
    shares = {
        "tis_truncate_fraction": x > high,
        "tis_clip_fraction_low": x < low,
        "tis_clip_fraction_high": x > high,
    }
    means = {k: jaxppo.token_mean(jnp.float32(y), B.mask) for k, y in shares.items()}
    for floor, names in [(None, [*shares][:1]), (jnp.exp(low), [*shares][1:])]:
        weights, metrics = recipes.slime.mis_weights(
            B.old,
            B.rollout,
            B.mask,
            cap=jnp.exp(high),
            floor=floor,
            aggregate=jaxppo.token_mean,
        )
        assert {k for k in metrics if "fraction" in k} == {*names}
        for k in names:
            np.testing.assert_allclose(metrics[k].value, means[k].value, err_msg=k)
        bounded = np.clip(np.exp(x), floor, np.exp(high))
        np.testing.assert_allclose(weights, np.where(B.mask, bounded, 0), rtol=1e-6)


def test_areal_clamps_ratios_only():
    """Its configuration refuses `action="clamp"` with a KL as the metric."""
    clamps = [k for k in functions(recipes.areal) if "clamp" in k]
    assert clamps == ["clamp_sequences_by_ratio", "clamp_tokens"]
    for k in clamps:
        assert "KL" not in inspect.getdoc(getattr(recipes.areal, k))


def test_ligers_cispo_counts_nothing_without_an_advantage():
    apart = dict(log_probs=B.logp, old_log_probs=B.logp - 1.0)
    for sign, expected in [(1.0, 1), (0.0, 0), (-1.0, 0)]:
        _, metrics = call("liger.cispo", **apart, advantages=sign * TOKENS)
        (fraction,) = metrics.values()
        assert fraction.value == expected


@pytest.mark.parametrize(
    ("weight", "x", "w"),
    [(1e-9, 18.5, 1e-8 * np.exp(18.5)), (1e9, -19.5, np.exp(0.5))],
)
def test_ligers_vespo_holds_the_weight_of_a_token(weight, x, w):
    """Within [1e-8, e^20], each; a float32 near 20 is good to 2e-6, times k + 3 w."""
    one = jnp.ones((1, 1))
    loss, _ = recipes.liger.vespo(-one, -one - x, one, one > 0, weights=weight * one)
    np.testing.assert_allclose(loss.value, w**2 * np.exp(3 * (1 - w)), rtol=2e-5)


def test_primes_shares_are_of_either_sign():
    for sign in (0.5, -0.5, 0.0):
        given = dict(advantages=sign * TOKENS, low=1e-6, high=1e-6)
        _, metrics = call("prime_rl.default", **given)
        shares = {k: float(x.value) for k, x in metrics.items()}
        assert shares["masked_advantage_positive"] == (sign > 0)
        assert shares["masked_advantage_negative"] == (sign < 0)
        assert (shares["is_masked_high"] > 0) == (sign > 0)
        assert (shares["is_masked_low"] > 0) == (sign < 0)


@pytest.mark.parametrize("name", ["ppo", "grpo", "gspo_token"])
def test_tunix_clips_the_loss_of_a_bad_answer_twice(name):
    apart = dict(old_log_probs=B.logp - 2.0, advantages=-TOKENS)
    loss, _ = call(f"tunix.{name}", **apart, dual_clip=1.5)
    np.testing.assert_allclose(loss.value, 1.5, rtol=1e-6)


def test_verls_gspo_holds_the_log_ratio_at_ten():
    for x, held in [(9.0, 9.0), (12.0, 10.0), (25.0, 10.0)]:
        given = dict(old_log_probs=B.logp - x, advantages=-TOKENS, weights=TOKENS)
        loss, _ = call("verl.gspo", **given)
        np.testing.assert_allclose(loss.value, np.exp(held), rtol=1e-5)


def test_verls_penalty_is_not_differentiated():
    args = B.token_rewards, B.logp - B.ref

    def total(rewards, kl):
        return jnp.sum(recipes.verl.kl_in_reward(rewards, kl, B.mask, kl_coef=0.3))

    by_rewards, by_kl = jax.grad(total, (0, 1))(*args)
    np.testing.assert_array_equal(by_rewards, 1)
    np.testing.assert_array_equal(by_kl, 0)
    kept = np.where(B.mask, args[1], 0)
    got = recipes.verl.kl_in_reward(*args, B.mask, kl_coef=0.3)
    np.testing.assert_allclose(got, args[0] - 0.3 * kept, rtol=1e-6)


def test_roll_on_policy_tapers_nothing():
    bad = -jnp.ones((B.rows, 1))
    _, metrics = call("roll.topr", log_probs=B.old, scores=bad)
    assert metrics["actor/topr_negative_total_clipfrac"].value == 0


def test_rolls_padding_stays_zero_of_one_token():
    mask = jnp.zeros((2, 3), bool).at[0, 1].set(True)
    white = recipes.roll.masked_whiten(jnp.full((2, 3), 7.0), mask)
    np.testing.assert_array_equal(white, jnp.where(mask, 7.0, 0))


def test_what_tunix_logs():
    """Of four tokens, one without an advantage, one held by each clip."""
    ratio = np.array([[0.5, 1.1, 2.0, 4.0, 9.0]])
    advantages = np.array([[1.0, 0.0, 2.0, -3.0, 5.0]])
    mask = jnp.array([[1, 1, 1, 1, 0]])
    x = jnp.log(jnp.float32(ratio))
    _, metrics = recipes.tunix.grpo(
        x, jnp.zeros_like(x), jnp.float32(advantages), mask, clip_eps=0.2, dual_clip=3.0
    )
    kept, size = ratio[0, :4], advantages[0, :4]
    expected = {
        "is_ratio/mean": kept.mean(),
        "is_ratio/max": 4.0,
        "is_ratio/min": 0.5,
        "log_ratio/abs_mean": np.abs(np.log(kept)).mean(),
        "pg_loss/unclipped_mean": -(kept * size).mean(),
        "pg_loss/clipped_mean": -(np.clip(kept, 0.8, 1.2) * size).mean(),
        "advantage/abs_mean": np.abs(size).mean(),
        "advantage/nonzero_frac": 0.75,
        "advantage/max": 2.0,
        "advantage/min": -3.0,
        "pg_clipfrac": 0.25,
        "pg_clipfrac_lower": 0.25,
    }
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name].value, value, rtol=1e-6, err_msg=name)


def test_skyrls_critic_is_clipped_by_its_own_width():
    narrow, wide = (call("skyrl.critic", clip_eps=x)[0].value for x in (0.01, 10.0))
    assert narrow != wide


def test_nemos_weights_are_constant_past_its_bound():
    """Where the reference gives 30 nats less, the ratio is no longer learned."""
    near, far = jnp.zeros((1, 2)), jnp.array([[0.0, -30.0]])
    new, mask = jnp.array([[0.1, 0.1]]), jnp.ones((1, 2), bool)
    kl = lambda x: jnp.sum(
        recipes.nemo.off_policy_kl(x, near, far, mask, max_value=1e12)
    )
    grad = jax.grad(kl)(new)[0]
    assert grad[0] != 0 and grad[1] == 0


@pytest.mark.parametrize(
    "name", [k for k in having("clip_eps_high") if k in having("advantages")]
)
def test_a_clip_has_two_sides(name):
    """Good tokens that have risen by 1.35 are held by one, and not by the other."""
    up = {"log_probs": B.old + 0.3, "advantages": jnp.abs(B.adv) + 0.1 + 0 * B.old}
    if name == "trl.rloo":
        up["advantages"] = up["advantages"][:, :1]
    value = lambda high: call(name, **up, clip_eps_high=high)[0]
    sides = zip(*map(jax.tree.leaves, (value(0.05), value(0.9))), strict=True)
    assert any(np.any(x != y) for x, y in sides)


def test_trls_gmpo_counts_rows_without_a_token():
    """Each adds -A to the value: its fault."""
    advantages = jnp.array([[1.0], [-3.0]])
    log_probs = jnp.zeros((2, 3))
    mask = jnp.array([[1, 1, 0], [0, 0, 0]])
    loss, _ = recipes.trl.gmpo(log_probs, log_probs, advantages, mask)
    np.testing.assert_allclose(loss.value, (-1.0 + 3.0) / 2, rtol=1e-6)


def test_skyrls_gspo_holds_the_log_ratio_at_ten():
    far = {"log_probs": B.old + 12.0, "advantages": -jnp.ones((B.rows, 1))}
    loss = call("skyrl.gspo", **far)[0].value
    ten = call("skyrl.gspo", **far | {"log_probs": B.old + 10.0})[0].value
    np.testing.assert_allclose(loss, ten, rtol=1e-5)
    assert loss > 1e4


def test_nemos_weights_that_overflow_count_nothing():
    """A fault of it."""
    x, mask = jnp.array([[0.0, 200.0]], jnp.float32), jnp.ones((1, 2), bool)
    weights, _ = recipes.nemo.importance_weights(x, jnp.zeros_like(x), mask)
    np.testing.assert_array_equal(weights, [[1.0, 0.0]])


@pytest.mark.parametrize("name", ["dppo_tv", "dppo_kl"])
def test_dppo_says_what_it_keeps(name):
    kept = call(name)[1]["kept_fraction"].value
    assert 0 < kept <= 1
    assert call(name, log_probs=B.old)[1]["kept_fraction"].value == 1


def test_rolls_k3_is_held_at_ten():
    x, mask = jnp.array([[-3.0, 0.5]]), jnp.ones((1, 2), bool)
    held = recipes.roll.kl_k3(x, jnp.zeros((1, 2)), mask)
    np.testing.assert_allclose(held, [[10.0, np.exp(-0.5) - 1 + 0.5]], rtol=1e-5)


def test_tunix_counts_no_good_answer_as_clipped_twice():
    x, mask = jnp.log(jnp.array([[4.0]])), jnp.ones((1, 1), bool)
    _, metrics = recipes.tunix.grpo(x, 0 * x, 0.5 + 0 * x, mask, dual_clip=3.0)
    assert metrics["pg_clipfrac_lower"].value == 0


def test_skyrl_counts_what_its_own_width_clips():
    risen = {"log_probs": B.old + 0.4, "advantages": 1.0 + 0 * B.old}
    _, metrics = call("skyrl.regular", **risen, clip_eps_high=0.9)
    shares = [x.value for k, x in metrics.items() if "clip" in k]
    assert shares and all(x == 0 for x in shares)
