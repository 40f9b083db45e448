"""Odd calls of the functions that take no arrays of one shape, with what to expect."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxppo


class Other(NamedTuple):
    """A public function, a good call of it, and values that are not good."""

    fn: Callable
    good: dict[str, Any]
    bad: dict[str, tuple]
    right: Callable[[Any, dict[str, Any]], bool]  # of what it returned


NUMBERS = (float("nan"), float("inf"), "0.1", 1j, np.full(2, 0.1), np.array("a"))
COUNTS = (0, -3, 1.5, True, "2", np.ones(2))
HIDDEN, WORDS = jnp.ones((2, 3)), jnp.asarray(np.arange(15.0).reshape(5, 3) / 9)
ROWS = {"x": jnp.arange(4.0)}


def squares(params: Any, batch: Any) -> Any:
    """A loss: the mean square of x less the parameter."""
    return jaxppo.token_mean((batch["x"] - params) ** 2), {}


def chosen(log_probs: Any, batch: Any) -> Any:
    """A loss of a head: the mean surprise."""
    return jaxppo.token_mean(-log_probs.log_probs), {}


def metrics_of(x: float) -> dict[str, Any]:
    """A mean and a maximum."""
    return {"a": jaxppo.Mean(jnp.array(3 * x), jnp.array(2.0)), "b": jaxppo.Max(x)}


def state() -> jaxppo.TrainState:
    """Of a learner that has not begun."""
    return jaxppo.learner(squares, optax.sgd(0.1)).init(jnp.array(0.5))


def moved(learner: jaxppo.Learner, given: dict[str, Any]) -> bool:
    """A step of the learner is gradient descent's."""
    state, _ = learner.update(learner.init(jnp.array(0.5)), ROWS, jax.random.key(0))
    return abs(float(state.params) - (0.5 - 0.1 * 2 * (0.5 - 1.5))) < 1e-6


def surprise(out: Any, given: dict[str, Any]) -> bool:
    """Of the head's loss, against NumPy."""
    z = np.float64(HIDDEN) @ np.float64(WORDS).T
    log_probs = z - np.log(np.exp(z).sum(-1, keepdims=True))
    expected = -log_probs[[0, 1], [1, 4]].sum()
    return abs(float(out[0].total) - expected) < 1e-5


OTHERS = [
    Other(
        jaxppo.adaptive_kl,
        dict(target=0.1, init_coef=0.5, gain=0.2, max_error=0.3),
        dict.fromkeys(["target", "init_coef", "gain", "max_error"], (*NUMBERS, 0, -1)),
        lambda out, _: abs(float(out.update(out.init(), jnp.array(9.0))) - 0.53) < 1e-6,
    ),
    Other(
        jaxppo.adaptive_entropy,
        dict(target=0.1, init_coef=0.5, step=0.2, max_coef=2.0),
        dict.fromkeys(["target", "init_coef", "step", "min_coef", "max_coef"], NUMBERS),
        lambda out, _: abs(float(out.update(out.init(), jnp.array(0.0))) - 0.7) < 1e-6,
    ),
    Other(
        jaxppo.all_rows,
        dict(aggregate=jaxppo.sequence_mean),
        dict(aggregate=("mean", None, 3, [jaxppo.token_mean])),
        lambda out, _: float(out(HIDDEN, jnp.eye(2, 3, dtype=bool)).value) == 1,
    ),
    Other(
        jaxppo.head_plan,
        dict(num_tokens=8, vocab_size=13, hidden_size=4, mode="cached"),
        dict.fromkeys(["num_tokens", "vocab_size", "hidden_size"], (*COUNTS, None))
        | dict.fromkeys(["vocab_block", "token_block", "cache_bytes"], COUNTS)
        | dict(mode=("Cached", "", 3, None), platform=("abacus", 3)),
        lambda out, _: out.mode == "cached" and out[1:] == (13, 8),
    ),
    Other(
        jaxppo.finalize,
        dict(metrics=metrics_of(2.0)),
        dict(metrics=({"a": 1.0}, {"a": jnp.ones(2)}, {"a": None}, {"a": "b"})),
        lambda out, _: float(out["a"]) == 3 and float(out["b"]) == 2,
    ),
    Other(
        jaxppo.check_progress,
        dict(state=state()),
        dict(max_skipped=COUNTS, state=(None, 3, {"skipped": 1})),
        lambda out, _: out is None,
    ),
    Other(
        jaxppo.accumulate_grads,
        dict(loss_fn=squares, params=jnp.array(0.5), batch=ROWS, num_microbatches=2),
        dict(
            num_microbatches=(3, *COUNTS),
            loss_fn=("loss", None, lambda p, b: 0.0, lambda p, b: jnp.ones(2)),
            batch=({}, {"x": jnp.ones(4), "y": jnp.ones(3)}, {"x": 1.0}, None),
        ),
        lambda out, _: abs(float(out[0]) + 2.0) < 1e-6,
    ),
    Other(
        jaxppo.learner,
        dict(loss_fn=squares, tx=optax.sgd(0.1)),
        dict.fromkeys(["num_epochs", "num_minibatches", "num_microbatches"], COUNTS)
        | dict(minibatch_target_kl=(-1.0, "0.1", 1j, 0), epoch_target_kl=("a", -1)),
        moved,
    ),
    Other(
        jaxppo.linear_policy_loss,
        dict(
            **dict(hidden=HIDDEN, unembed=WORDS, batch=dict(w=jnp.ones(2))),
            **dict(loss_fn=chosen, targets=jnp.array([1, 4])),
        ),
        dict(
            hidden=(
                jnp.ones((2, 4)),
                jnp.ones(3, int),
                None,
                [1.0],
                jnp.ones((2, 2, 3)),
            ),
            unembed=(jnp.ones((5, 4)), jnp.ones(3), jnp.ones((5, 3), int), None),
            targets=(jnp.ones(2), jnp.ones(3, int), None, jnp.array([[1], [4]])),
            mask=(jnp.ones(2), jnp.ones(3, bool), [True, True]),
            temperature=(*(x for x in NUMBERS if not jnp.shape(x)), 0, -1),
            softcap=(*NUMBERS, 0, -1),
            bias=(jnp.ones(4), jnp.ones(5, int), 1.0),
            loss_fn=("loss", None, lambda x, b: 0.0),
            vocab_block=COUNTS,
            token_block=COUNTS,
        ),
        surprise,
    ),
]
