"""One system trains CartPole-v1 on one core, and says in JSON what that took.

    python benchmarks/control_peers.py jaxppo --num-envs 64
    python benchmarks/control_peers.py purejaxrl --num-envs 64 --checkout path/to/it

The work is the same for all: 128 steps, 4 epochs of 4 minibatches, two 64x64 tanh
networks, Adam at 2.5e-4 annealed, clip 0.2, entropy 0.01, gradients clipped at 0.5.
Where a system cannot do that, its function says so. `control_speed.py` runs it for
every system, in the Python that has it; so this file needs nothing but the system.
"""

import argparse
import json
import os
import pathlib
import sys
import time
import types
from collections.abc import Callable
from itertools import pairwise
from typing import Any, ClassVar

STEPS, EPOCHS, MINIBATCHES = 128, 4, 4
HERE = pathlib.Path(__file__).resolve().parents[1]
Train = Callable[[int], Any]  # seed -> whatever was trained


def main() -> None:
    """Compile, train with several seeds, evaluate."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("system", choices=sorted(SYSTEMS))
    parser.add_argument("--num-envs", type=int, default=64)
    parser.add_argument("--updates", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--checkout", default="", help="of purejaxrl or Stoix")
    parser.add_argument("--every", type=int, help="evaluate so often (purejaxrl)")
    o = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # one core, one thread
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.path[:0] = [str(HERE), str(HERE / "examples")]
    print(json.dumps(SYSTEMS[o.system](o)))


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of this process, and what came of it."""
    start = time.process_time()
    result = call()
    return time.process_time() - start, result


def result(o: Any, version: str, compile: float, seconds: list, returns: list) -> dict:
    """What is reported of a system."""
    steps = o.updates * o.num_envs * STEPS
    return {
        "system": o.system,
        "version": version,
        "jax": version_text("jax"),
        "num_envs": o.num_envs,
        "steps": steps,
        "compile": compile,
        "seconds": seconds,
        "steps_per_second": [steps / x for x in seconds],
        "returns": returns,
    }


def of_jax(o: Any, version: str, build: Callable[[], tuple]) -> dict[str, Any]:
    """Of a system whose training is one function to compile, `seed -> trained`.

    `build()` returns it, with what makes a policy of its result.
    """
    import jax

    def compiled() -> tuple:
        train, policy = build()
        key = jax.random.key(0) if o.system == "jaxppo" else jax.random.PRNGKey(0)
        return jax.jit(train).lower(key).compile(), policy

    compile, (train, policy) = timed(compiled)
    seconds, returns = [], []
    for seed in range(o.seeds):
        key = jax.random.key(seed) if o.system == "jaxppo" else jax.random.PRNGKey(seed)
        took, trained = timed(lambda key=key: jax.block_until_ready(train(key)))
        seconds.append(took)
        returns.append(evaluated(policy(trained)))
    return result(o, version, compile, seconds, returns)


def evaluated(act: Callable, episodes: int = 128) -> float:
    """Mean return of fresh episodes of our CartPole, under `act(key, obs) -> actions`.

    It equals gymnasium's and gymnax's, which the tests check.
    """
    import jax

    return float(
        jax.jit(lambda key: mean_return(act, key, episodes))(jax.random.key(1))
    )


def mean_return(act: Callable, key: Any, episodes: int) -> Any:
    """The same, to be traced."""
    import jax
    import jax.numpy as jnp
    from control import environments

    env = environments.cartpole()

    def step(carry: Any, key: Any) -> tuple:
        state, obs, going, total = carry
        act_key, env_key = jax.random.split(key)
        keys = jax.random.split(env_key, episodes)
        after = jax.vmap(env.step)(keys, state, act(act_key, obs))
        total = total + going
        going = going & ~(after.terminated | after.truncated)
        return (after.state, after.obs, going, total), None

    keys = jax.random.split(key, episodes + 1)
    state, obs = jax.vmap(env.reset)(keys[1:])
    start = state, obs, jnp.ones(episodes, bool), jnp.zeros(episodes)
    steps = jax.random.split(keys[0], 500)
    return jax.lax.scan(step, start, steps)[0][3].mean()


def jaxppo(o: Any) -> dict[str, Any]:
    """Ours: examples/control, its options set to the others' work."""
    import control  # before JAX starts: it sets a flag
    import jax
    from control import environments, runs, training

    import jaxppo

    del control
    options = training.PPO(
        **{"total_steps": o.updates * o.num_envs * STEPS, "num_envs": o.num_envs},
        **{"num_steps": STEPS, "num_epochs": EPOCHS, "num_minibatches": MINIBATCHES},
        **{"learning_rate": 2.5e-4, "value_loss": "clipped"},
    )

    def build() -> tuple:
        one = training.trainer(environments.cartpole(), options)
        init = jax.jit(one.init, compiler_options=runs.on_cpu(runs.ONCE))
        init = init.lower(jax.random.key(0)).compile()

        def advance(run: Any) -> Any:
            update = lambda run, _: (one.update(run)[0], None)
            return jax.lax.scan(update, run, length=o.updates)[0]

        start = jax.eval_shape(one.init, jax.random.key(0))
        advance = (
            jax.jit(advance, compiler_options=runs.on_cpu(runs.OFTEN))
            .lower(start)
            .compile()
        )
        return init, advance, one

    compile, (init, advance, one) = timed(build)
    evaluate = jax.jit(lambda run, key: one.evaluate(run, key, 128))
    seconds, returns = [], []
    for seed in range(o.seeds):
        train = lambda seed=seed: jax.block_until_ready(
            advance(init(jax.random.key(seed)))
        )
        took, run = timed(train)
        seconds.append(took)
        returns.append(float(evaluate(run, jax.random.key(1)).mean()))
    return result(o, jaxppo.__version__, compile, seconds, returns)


def rejax(o: Any) -> dict[str, Any]:
    """No annealing, Adam's eps 1e-8, gradients clipped element by element."""
    import gymnax
    from rejax import PPO

    steps = o.updates * o.num_envs * STEPS

    def build() -> tuple:
        algorithm = PPO.create(
            **{"env": five_values(gymnax.make("CartPole-v1")[0])},
            **{"total_timesteps": steps},
            **{"num_envs": o.num_envs, "num_steps": STEPS, "num_epochs": EPOCHS},
            **{"num_minibatches": MINIBATCHES, "learning_rate": 2.5e-4},
            **{"gamma": 0.99, "gae_lambda": 0.95, "clip_eps": 0.2, "ent_coef": 0.01},
            **{"vf_coef": 0.5, "max_grad_norm": 0.5, "eval_freq": steps},
            agent_kwargs={"hidden_layer_sizes": (64, 64), "activation": "tanh"},
            skip_initial_evaluation=True,
        ).replace(eval_callback=lambda *_: 0)

        def policy(trained: Any) -> Callable:
            import jax

            act = algorithm.make_act(trained[0])
            return lambda key, obs: jax.vmap(act)(obs, jax.random.split(key, len(obs)))

        return algorithm.train, policy

    return of_jax(o, version_text("rejax"), build)


def five_values(env: Any) -> Any:
    """A gymnax environment with the five-value `step` that gymnax 1.0 removed."""
    if version_of("gymnax") < (1,):
        return env
    from gymnax.wrappers.compat import LegacyStepAPIWrapper

    class Legacy(LegacyStepAPIWrapper):
        def __deepcopy__(self, _: Any) -> Any:  # rejax copies its configuration
            return self

    return Legacy(env)


def version_text(package: str) -> str:
    """As its metadata says."""
    from importlib.metadata import version

    return version(package)


def version_of(package: str) -> tuple[int, ...]:
    """As numbers."""
    return tuple(int(x) for x in version_text(package).split(".")[:2])


def purejaxrl(o: Any) -> dict[str, Any]:
    """Of a checkout: its `ppo.py`, as it is; actor and critic are clipped jointly."""
    import gymnax

    folder = pathlib.Path(o.checkout) / "purejaxrl"
    sys.path.insert(0, str(folder))
    for name in ("navix", "brax", "brax.envs", "brax.envs.wrappers"):
        sys.modules[name] = Anything(name)  # imported, not used by CartPole
    sys.modules["brax.envs.wrappers.training"] = Anything("training")
    make = gymnax.make
    gymnax.make = lambda name: (five_values(make(name)[0]), make(name)[1])
    import ppo

    config = {
        **{"LR": 2.5e-4, "NUM_ENVS": o.num_envs, "NUM_STEPS": STEPS, "DEBUG": False},
        **{"TOTAL_TIMESTEPS": o.updates * o.num_envs * STEPS, "GAMMA": 0.99},
        **{"UPDATE_EPOCHS": EPOCHS, "NUM_MINIBATCHES": MINIBATCHES, "ANNEAL_LR": True},
        **{"GAE_LAMBDA": 0.95, "CLIP_EPS": 0.2, "ENT_COEF": 0.01, "VF_COEF": 0.5},
        **{"MAX_GRAD_NORM": 0.5, "ACTIVATION": "tanh", "ENV_NAME": "CartPole-v1"},
    }

    def acting(params: Any) -> Callable:
        net = ppo.ActorCritic(2, activation="tanh")
        return lambda key, obs: net.apply(params, obs)[0].sample(seed=key)

    def build() -> tuple:
        policy = lambda trained: acting(trained["runner_state"][0].params)
        return ppo.make_train(config), policy

    if not o.every:
        return of_jax(o, "31756b1", build)
    return {"system": o.system} | along_the_way(o, ppo.make_train(config), acting)


def along_the_way(o: Any, train: Train, acting: Callable) -> dict[str, Any]:
    """Steps, and returns `(evaluations, seeds)` of purejaxrl's parameters then.

    Its `train` keeps only the last: here the scan over its updates keeps them all.
    """
    from unittest import mock

    import jax

    scan = jax.lax.scan

    def keeping(
        f: Callable, init: Any, xs: Any, length: Any = None, **more: Any
    ) -> Any:
        if length != o.updates:
            return scan(f, init, xs, length, **more)
        return scan(lambda c, x: (f(c, x)[0], c[0].params), init, xs, length, **more)

    def curve(seed: Any) -> Any:
        with mock.patch.object(jax.lax, "scan", keeping):
            trained = train(jax.random.PRNGKey(seed))
        last = trained["runner_state"][0].params
        # What is kept of an update is what it began with.
        every = jax.tree.map(
            lambda x, y: jax.numpy.r_[x, y[None]], *((trained["metrics"], last))
        )
        some = jax.tree.map(lambda x: x[o.every :: o.every], every)
        key = jax.random.key(1)
        return jax.lax.map(lambda params: mean_return(acting(params), key, 100), some)

    curve = jax.jit(curve)
    returns = [curve(seed).tolist() for seed in range(o.seeds)]
    steps = range(o.every, o.updates + 1, o.every)
    return {
        "steps": [i * o.num_envs * STEPS for i in steps],
        "returns": list(zip(*returns, strict=True)),
        "final": [of[-1] for of in returns],
    }


def stoix(o: Any) -> dict[str, Any]:
    """Of a checkout: its `ff_ppo.py`; its critic sees every next observation, too.

    Advantages are normalised over the whole batch; no gymnax truncates for it.
    """
    from unittest import mock

    import flax
    import gymnax
    import jax
    import stoa
    from omegaconf import OmegaConf

    sys.path.insert(0, o.checkout)
    stoix = types.ModuleType("stoix")
    stoix.__path__ = [str(pathlib.Path(o.checkout) / "stoix")]
    sys.modules["stoix"] = stoix  # without its __init__, which imports all environments
    for name in ("flashbax.buffers.trajectory_buffer", *NOT_USED):
        sys.modules[name] = Anything(name)
    from stoa.core_wrappers.vmap import VmapWrapper
    from stoa.core_wrappers.wrapper import AddRNGKey
    from stoa.env_adapters.gymnax import GymnaxToStoa
    from stoa.utility_wrappers.extras_transforms import NoExtrasWrapper
    from stoix.systems.ppo.anakin import ff_ppo

    configs = pathlib.Path(stoix.__path__[0]) / "configs"
    torso = {"layer_sizes": [64, 64], "activation": "tanh"}
    read = lambda name: OmegaConf.to_container(OmegaConf.load(configs / name))
    network: Any = read("network/mlp.yaml")
    for name in ("actor_network", "critic_network"):
        network[name]["pre_torso"] |= torso
    system: Any = read("system/ppo/ff_ppo.yaml")
    system |= {"actor_lr": 2.5e-4, "critic_lr": 2.5e-4, "num_minibatches": MINIBATCHES}
    arch = {"num_envs": o.num_envs, "total_num_envs": o.num_envs}
    arch |= {"num_updates": o.updates, "num_updates_per_eval": o.updates}
    arch |= {"update_batch_size": 1}
    config = OmegaConf.create(
        {
            **{"network": network, "system": system, "arch": arch, "num_devices": 1},
            "logger": {"checkpointing": {"load_model": False}},
        }
    )
    env = NoExtrasWrapper(GymnaxToStoa(*gymnax.make("CartPole-v1")))
    env = stoa.RecordEpisodeMetrics(AddRNGKey(env))
    env: Any = VmapWrapper(stoa.AutoResetWrapper(env, next_obs_in_extras=True))
    for name in ("observation_space", "action_space"):  # which jit cannot trace
        space = getattr(env, name)()
        setattr(env, name, lambda space=space: space)
    actors = []

    def train(key: Any) -> Any:
        one_device = mock.patch.multiple(
            jax, pmap=lambda f, axis_name: jax.vmap(f, axis_name=axis_name)
        )
        stacked = lambda tree, devices: jax.tree.map(lambda x: x[None], tree)
        with one_device, mock.patch.object(flax.jax_utils, "replicate", stacked):
            keys = jax.random.split(key, 3)
            learn, actor, state = ff_ppo.learner_setup(env, keys, config)
        actors.append(actor)
        return learn(state).learner_state.params.actor_params

    def policy(params: Any) -> Callable:
        params = jax.tree.map(lambda x: x[0, 0], params)
        return lambda key, obs: actors[0].apply(params, obs).sample(seed=key)

    return of_jax(o, "8fff19c", lambda: (train, policy))


NOT_USED = (
    *("stoix.utils.logger", "stoix.utils.make_env", "stoix.utils.checkpointing"),
    *("stoix.evaluator", "flashbax", "flashbax.buffers"),
)


class Anything(types.ModuleType):
    """A module that has whatever name is asked for."""

    __path__: ClassVar[list[str]] = []

    def __getattr__(self, name: str) -> Any:
        return object


def sb3(o: Any) -> dict[str, Any]:
    """The squared error is not halved, nor is the larger of two taken."""
    import stable_baselines3

    return of_sb3(o, stable_baselines3.PPO, stable_baselines3.__version__)


def sbx(o: Any) -> dict[str, Any]:
    """No value clipping; of orthogonal matrices only the actor's last."""
    import sbx

    return of_sb3(o, sbx.PPO, sbx.__version__)


def of_sb3(o: Any, algorithm: Any, version: str) -> dict[str, Any]:
    """Both have the same interface; the first update, not counted, is "compile"."""
    import numpy as np
    import torch
    from stable_baselines3.common.env_util import make_vec_env

    torch.set_num_threads(1)
    per_update = o.num_envs * STEPS
    activation: Any = torch.nn.Tanh
    if o.system == "sbx":
        import flax.linen

        activation = flax.linen.tanh

    def made(seed: int) -> Any:
        return algorithm(
            "MlpPolicy",
            make_vec_env("CartPole-v1", o.num_envs, seed),
            **{"learning_rate": lambda left: 2.5e-4 * left, "n_steps": STEPS},
            **{"batch_size": per_update // MINIBATCHES, "n_epochs": EPOCHS},
            **{"gamma": 0.99, "gae_lambda": 0.95, "clip_range": 0.2, "vf_coef": 0.5},
            **{"ent_coef": 0.01, "max_grad_norm": 0.5, "seed": seed},
            policy_kwargs={"net_arch": [64, 64], "activation_fn": activation},
        )

    compile, seconds, returns = 0.0, [], []
    for seed in range(o.seeds):
        model = made(seed)  # each compiles anew, in its first update: sbx's
        first, _ = timed(lambda model=model: model.learn(per_update))
        compile = max(compile, first)
        took, _ = timed(lambda model=model: model.learn(o.updates * per_update))
        seconds.append(took)
        envs = make_vec_env("CartPole-v1", 128, 1000)
        obs, total, going = envs.reset(), np.zeros(128), np.ones(128, bool)
        while going.any():
            obs, _, ended, _ = envs.step(model.predict(obs)[0])
            total += going
            going &= ~ended
        returns.append(float(total.mean()))
    return result(o, version, compile, seconds, returns)


def brax(o: Any) -> dict[str, Any]:
    """Continuous actions only, so CartPole takes a number and looks at its sign.

    No annealing, Adam's eps 1e-8, advantages anew for each minibatch. It compiles its
    epoch twice; what is timed is the last quarter.
    """
    import jax
    import jax.numpy as jnp
    from brax.envs import base
    from brax.training.agents.ppo import networks, train
    from control import environments

    cartpole = environments.cartpole()
    if not hasattr(jax, "device_put_replicated"):  # removed; brax 0.14.2 still asks
        copies = lambda x, devices: jnp.stack([jnp.asarray(x)] * len(devices))
        jax.device_put_replicated = lambda tree, devices: jax.tree.map(
            lambda x: copies(x, devices), tree
        )

    class CartPole(base.Env):
        observation_size, action_size, backend = 4, 1, "jax"

        def reset(self, rng: Any) -> base.State:
            state, obs = cartpole.reset(rng)
            zero = jnp.zeros(())
            return base.State(state, obs, zero, zero)

        def step(self, state: base.State, action: Any) -> base.State:
            key = jax.random.PRNGKey(0)
            way = (action[0] > 0).astype(jnp.int32)
            after = cartpole.step(key, state.pipeline_state, way)
            return state.replace(
                pipeline_state=after.state,
                obs=after.obs,
                reward=after.reward,
                done=after.terminated.astype(jnp.float32),
            )

    steps, clock = o.updates * o.num_envs * STEPS, []
    layers = {"policy_hidden_layer_sizes": (64, 64), "activation": jnp.tanh}
    layers["value_hidden_layer_sizes"] = (64, 64)
    seconds, returns, compile = [], [], 0.0
    for seed in range(o.seeds):
        clock.clear()
        start = time.process_time()
        act, params, _ = train.train(
            CartPole(),
            **{"num_timesteps": steps, "episode_length": 500, "num_envs": o.num_envs},
            **{"unroll_length": STEPS, "num_minibatches": MINIBATCHES, "seed": seed},
            **{"batch_size": o.num_envs // MINIBATCHES, "learning_rate": 2.5e-4},
            **{"num_updates_per_batch": EPOCHS, "entropy_cost": 0.01, "num_evals": 5},
            **{"discounting": 0.99, "gae_lambda": 0.95, "clipping_epsilon": 0.2},
            **{"max_grad_norm": 0.5, "run_evals": False, "normalize_advantage": True},
            network_factory=lambda *a, **k: networks.make_ppo_networks(
                *a, **k, **layers
            ),
            progress_fn=lambda done, _: clock.append((done, time.process_time())),
        )
        (first, early), (last, late) = clock[-2:]
        seconds.append((late - early) * steps / (last - first))
        compile = max(compile, late - start - seconds[-1])
        policy = act(params)
        returns.append(
            evaluated(lambda key, obs, p=policy: (p(obs, key)[0][:, 0] > 0).astype(int))
        )
    return result(o, version_text("brax"), compile, seconds, returns)


def products(o: Any) -> dict[str, Any]:
    """The limit: seconds a step for its products of matrices alone, on this core.

    Forward and backward through both networks in every epoch, in parts that fit a
    core's cache, and forward once more: the actor to act, the critic for its values.
    """
    import jax
    import jax.numpy as jnp

    def layers(outputs: int) -> list:
        sizes = [4, 64, 64, outputs]
        return [jnp.full((a, b), 0.01) for a, b in pairwise(sizes)]

    nets = layers(2), layers(1)

    def forward(nets: Any, x: Any) -> Any:
        outs = []
        for net in nets:
            y = x
            for weights in net:
                y = y @ weights
            outs.append(y)
        return outs

    def gradient(nets: Any, x: Any) -> Any:
        total = lambda nets: sum(y.sum() for y in forward(nets, x))
        return jax.tree.map(lambda w, g: w - 1e-9 * g, nets, jax.grad(total)(nets))

    def seconds(step: Any, rows: int) -> float:
        times = max(1, 2**17 // rows)
        x = jnp.ones((rows, 4))
        many = jax.jit(lambda n, x: jax.lax.scan(step(x), n, length=times)[0])
        many = many.lower(nets, x).compile()
        best = min(
            timed(lambda: jax.block_until_ready(many(nets, x)))[0] for _ in range(5)
        )
        return best / times / rows

    part = min(256, o.num_envs * STEPS // MINIBATCHES)
    learning = seconds(lambda x: lambda n, _: (gradient(n, x), None), part)

    def acting(x: Any) -> Any:
        def step(n: Any, _: Any) -> tuple:
            y = sum(y.sum() for y in forward(n, x + n[0][0][0, 0]))
            return jax.tree.map(lambda w: w + 1e-12 * y, n), None

        return step

    rows = min(256, o.num_envs * STEPS)
    flops = sum(2 * w.size for net in nets for w in net)
    # Backward: as much again for the weights, and, but for the first, for what came in.
    back = flops + sum(2 * w.size for net in nets for w in net[1:])
    return {
        "per_step": EPOCHS * learning + seconds(acting, rows),
        "flops": EPOCHS * (flops + back) + flops,
    }


SYSTEMS = {
    f.__name__: f for f in (jaxppo, rejax, purejaxrl, stoix, brax, sbx, sb3, products)
}

if __name__ == "__main__":
    main()
