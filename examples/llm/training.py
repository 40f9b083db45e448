"""One update of a language model, as pure functions of arrays; jit them."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import jaxppo

from . import sampler, sharding
from .algorithms import ALGORITHMS, Batch
from .options import Hyper


class Trainer(NamedTuple):
    """Functions of a model's trained and frozen parameters.

    Attributes:
        init: `init(trained)`: the state of training.
        sample: `sample(trained, frozen, prompts, prompt_mask, key)`.
        update: `update(state, frozen, ref, batch, key)`: state, metrics. `ref` is what
            was trained, at the start.
    """

    init: Callable[[Any], jaxppo.TrainState]
    sample: Callable[..., sampler.Samples]
    update: Callable[..., tuple[jaxppo.TrainState, dict[str, jaxppo.Metric]]]


def trainer(
    graph: Any,
    hyper: Hyper,
    *,
    dtype: Any,
    max_new_tokens: int,
    end_ids: tuple[int, ...],
) -> Trainer:
    """Sampling and learning of one model, computed in a dtype."""
    advantages, loss, critic = ALGORITHMS[hyper.algorithm]

    def head(trained: Any, frozen: Any, b: Batch) -> tuple[Any, Any]:
        """Log-probs and entropy of the completions' tokens, and the critic's values."""

        def computed(trained: Any, frozen: Any, b: Batch) -> Any:
            model = nnx.merge(graph, trained, frozen)
            states = model.states(b["prompts"], b["prompt_mask"], b["completions"])
            return states, model.unembed, model.values(states)

        on_mesh = not jax.sharding.get_abstract_mesh().empty
        rows, words = sharding.ROWS, sharding.P("tensor")
        specs = rows, words, rows if critic else None
        run = sharding.automatic(computed, specs)
        states, unembed, values = run(trained, frozen, b)
        out = jaxppo.token_log_probs(
            states,
            unembed,
            b["completions"],
            mask=b["mask"],
            temperature=hyper.temperature,
            token_spec=rows if on_mesh else None,
            vocab_axis="tensor" if on_mesh else None,
        )
        return out, values

    def loss_fn(frozen: Any, trained: Any, b: Batch) -> Any:
        out, values = head(trained, frozen, b)
        total, metrics = loss(out, values, b, hyper)
        metrics["entropy"] = jaxppo.token_mean(out.entropy, b["mask"])
        if "ref_log_probs" in b:
            x = jaxppo.log_ratio(out.log_probs, b["ref_log_probs"], b["mask"])
            metrics["ref_kl"] = jaxppo.token_mean(jaxppo.kl_k3(x), b["mask"])
        return total, metrics

    def log_probs(trained: Any, frozen: Any, b: Batch) -> jax.Array:
        """Of a policy that stays as it is; in parts, as the loss is computed in."""
        parts = hyper.num_minibatches * hyper.num_microbatches
        names = "prompts", "prompt_mask", "completions", "mask"

        def run(trained: Any, frozen: Any, b: Batch) -> jax.Array:
            # Strided, so that rows that are spread over devices stay where they are.
            split = lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)
            of = lambda part: head(trained, frozen, part)[0].log_probs
            out = jax.lax.map(of, jax.tree.map(split, b))
            return out.swapaxes(0, 1).reshape(b["mask"].shape)

        run = sharding.automatic(run, sharding.ROWS)
        return run(trained, frozen, {name: b[name] for name in names})

    def steps(rate: float) -> optax.GradientTransformation:
        adamw = optax.adamw(rate, weight_decay=hyper.weight_decay)
        return optax.chain(clipped(hyper.max_grad_norm), adamw)

    def learner(frozen: Any) -> jaxppo.Learner:
        return jaxppo.learner(
            partial(loss_fn, frozen),
            optax.partition(
                {
                    "policy": steps(hyper.learning_rate),
                    "critic": steps(hyper.critic_learning_rate),
                },
                of_critic,
            ),
            num_epochs=hyper.num_epochs,
            num_minibatches=hyper.num_minibatches,
            num_microbatches=hyper.num_microbatches,
        )

    def sample(trained, frozen, prompts, prompt_mask, key) -> sampler.Samples:
        def run(trained, frozen, prompts, prompt_mask, key):
            # Once for the completions, not once for each of their tokens.
            whole = sharding.gathered((trained, frozen), dtype)
            return sampler.generate(
                nnx.merge(graph, *whole),
                prompts,
                prompt_mask,
                key,
                num_samples=hyper.group_size,
                max_new_tokens=max_new_tokens,
                end_ids=end_ids,
                temperature=hyper.temperature,
                top_k=hyper.top_k,
                top_p=hyper.top_p,
            )

        rows: Any = sharding.ROWS
        out = sampler.Samples(rows, rows, rows, rows if critic else None)
        return sharding.automatic(run, out)(trained, frozen, prompts, prompt_mask, key)

    def update(state, frozen, ref, batch: Batch, key):
        b = dict(batch)
        restricted = hyper.top_k is not None or hyper.top_p is not None
        if restricted or dtype != jnp.float32:
            # Sampled from fewer words than the policy that is trained has, or rounded
            # in another order: more than GSPO's window is wide.
            b["old_log_probs"] = log_probs(state.params, frozen, b)
        if hyper.kl_coef:
            b["ref_log_probs"] = log_probs(ref, frozen, b)
        b = advantages(b, hyper)
        state, metrics = learner(frozen).update(state, b, key)
        if critic:
            explained = jaxppo.explained_variance(
                b["old_values"], b["returns"], b["mask"]
            )
            metrics["explained_variance"] = jaxppo.Mean(explained, jnp.ones(()))
        return state, metrics

    return Trainer(lambda trained: learner(None).init(trained), sample, update)


def of_critic(params: Any) -> Any:
    """Which parameters are the critic's own, by name."""
    name = lambda path, _: "critic" if path[0].key == "value" else "policy"
    return jax.tree_util.tree_map_with_path(name, params)


def clipped(max_norm: float) -> optax.GradientTransformation:
    """`optax.clip_by_global_norm` by a product, which the compiler fuses: no copy."""

    def clip(grads: Any, params: Any) -> Any:
        scale = jnp.minimum(1.0, max_norm / optax.tree.norm(grads))
        return jax.tree.map(lambda g: g * scale, grads)

    return optax.stateless(clip)
