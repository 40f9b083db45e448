"""jaxppo's losses in Tunix's own learners, with its sampler and its training step.

`python3 run.py test-live` has google-tunix, and stand-ins for what it imports and does
not call here; with all of its dependencies installed there are none.
"""

import functools
import importlib.util
from types import SimpleNamespace

import jax
import jax.flatten_util
import numpy as np
import optax
import pytest

import jaxppo

if importlib.util.find_spec("tunix") is None:
    reason = "not installed: google-tunix; `python3 run.py test-live` does"
    pytest.skip(reason, allow_module_level=True)

from parity.live import stubs

pytestmark = pytest.mark.filterwarnings("ignore")  # Tunix's are not ours to mend
SEQUENCES = functools.partial(jaxppo.ppo_loss, aggregate=jaxppo.sequence_mean)


@pytest.fixture(scope="module", autouse=True)
def surroundings():
    """As a user of Tunix has them, in its threads too."""
    strict = {
        "jax_numpy_dtype_promotion": "standard",
        "jax_numpy_rank_promotion": "allow",
    }
    before = {name: getattr(jax.config, name) for name in strict}
    for name, value in strict.items():
        jax.config.update(name, value)
    with stubs.stubbed():
        yield
    for name, value in before.items():
        jax.config.update(name, value)


def trained(make_learner, optimizer, num_prompts, **roles):
    """How each model's parameters moved, over two batches, each used twice."""
    from flax import nnx
    from with_tunix import toy

    cluster = toy.cluster(optimizer, max_steps=4, **roles)
    trainers = [cluster.actor_trainer]
    trainers += [cluster.critic_trainer] if roles.get("critic") else []
    params = lambda: [nnx.state(trainer.model, nnx.Param) for trainer in trainers]
    before = jax.tree.map(np.array, params())
    make_learner(cluster).train(toy.prompts(2, num_prompts))
    names = [("actor", "pg_clipfrac"), ("critic", "vf_clipfrac")][: len(trainers)]
    logger = cluster.actor_trainer.metrics_logger
    clipped = [logger.get_metric_history(*name, "train") for name in names]
    moves = jax.tree.map(lambda x, y: np.array(x) - y, params(), before)
    return [jax.flatten_util.ravel_pytree(move)[0] for move in moves], clipped


def by_grpo(name, beta=0.0, **config):
    from tunix.rl.grpo import grpo_learner
    from with_tunix import toy

    config = grpo_learner.GRPOConfig(
        policy_loss_fn=name, num_generations=4, num_iterations=2, beta=beta, **config
    )
    make = lambda cluster: grpo_learner.GRPOLearner(cluster, config, toy.vowels)
    return trained(make, optax.sgd(1.0), 2, reference=beta > 0)


def by_ppo(policy, value, **config):
    from tunix.rl.ppo import ppo_learner
    from with_tunix import toy

    config = ppo_learner.PPOConfig(
        policy_loss_fn=policy,
        value_loss_fn=value,
        num_iterations=2,
        beta=0.0,
        clip_range_value=0.05,
        **config,
    )
    make = lambda cluster: ppo_learner.PPOLearner(cluster, config, toy.vowels)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.5))
    return trained(make, optimizer, 8, critic=True)


def assert_same(theirs, ours):
    """Within the rounding errors of four steps, of what each model has moved by."""
    for one, other in zip(theirs[0], ours[0], strict=True):
        moved, error = np.max(np.abs(one)), np.max(np.abs(one - other))
        assert moved > 0.01 and error < 1e-5 * moved
    np.testing.assert_allclose(theirs[1], ours[1], atol=1e-6)
    assert np.all(np.max(theirs[1], -1) > 0.1), "the clip is hardly ever met"


@pytest.mark.parametrize(
    ("loss", "options", "config"),
    [
        (SEQUENCES, {}, {}),
        (SEQUENCES, {"kl": jaxppo.kl_k1}, {"beta": 0.1}),
        (
            SEQUENCES,
            {"kl": jaxppo.kl_k3},
            {"beta": 0.1, "kl_loss_mode": "low_var_kl"},
        ),
        (
            jaxppo.ppo_loss,
            {"kl": jaxppo.kl_k1, "aggregate": jaxppo.token_mean},
            {"beta": 0.1, "loss_agg_mode": "token-mean"},
        ),
        (
            functools.partial(jaxppo.recipes.gspo, clip_eps=0.2, clip_eps_high=0.2),
            {},
            {"loss_algo": "gspo-token", "epsilon": 0.2},
        ),
    ],
    ids=["grpo", "kl", "low_var_kl", "token-mean", "gspo"],
)
def test_grpo_is_tunix_own(loss, options, config):
    from with_tunix import losses

    losses.register("jaxppo/test", loss, **options)
    assert_same(by_grpo("grpo", **config), by_grpo("jaxppo/test", **config))


def test_ppo_is_tunix_own():
    """The critic too; and the dual clip, which binds."""
    from with_tunix import losses

    loss = functools.partial(jaxppo.ppo_loss, dual_clip=1.1)
    losses.register("jaxppo/test", loss)
    losses.register_value_loss("jaxppo/test")
    theirs = by_ppo("ppo", "ppo", epsilon_c=1.1)
    assert_same(theirs, by_ppo("jaxppo/test", "jaxppo/test"))
    ((unbound, _), _) = by_ppo("ppo", "jaxppo/test")
    assert np.max(np.abs(unbound - theirs[0][0])) > 1e-3


@pytest.mark.parametrize("loss", ["gspo", "dual_clip", "cispo", "ppo"])
def test_what_it_trains_learns(loss):
    import tunix_grpo

    out = tunix_grpo.train(tunix_grpo.Options(loss=loss, num_updates=20))
    first, last = out["reward"][:4], out["reward"][-4:]
    assert np.mean(last) > np.mean(first) + 0.5  # vowels
    clipped = out["clip fraction"]
    assert np.max(clipped) <= 1 and (loss == "cispo" or np.max(clipped) > 0)


@pytest.mark.parametrize("name", ["segment_ids", "sampler_is_weights"])
def test_what_would_be_left_out_is_refused(name):
    from with_tunix import losses

    losses.refuse(SimpleNamespace(segment_ids=None, sampler_is_weights=None), name, "")
    with pytest.raises(NotImplementedError, match=name):
        losses.refuse(SimpleNamespace(**{name: np.ones(2)}), name, "why")


def test_tunix_own_loss_can_be_replaced():
    """As docs/trainers.md says for MaxText, which has no option for another name."""
    from tunix.rl import algo_core, function_registry
    from with_tunix import losses

    losses.register("grpo", jaxppo.recipes.gspo)
    ours = function_registry.get_policy_loss_fn("grpo")
    function_registry.register_policy_loss_fn("grpo")(algo_core.grpo_loss_fn)
    assert ours.__module__ == losses.__name__
