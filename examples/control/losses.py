"""What an update minimises: our terms, or the total of another system as its recipe.

A system is more than its loss: `as_in("cleanrl", options)` sets how the gradient is
clipped, what a time limit means and so on as that system does.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import jax

import jaxppo
from jaxppo import recipes

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

ValueLoss = Literal["squared", "clipped", "bounded", "clamped", "huber"]
SystemName = Literal[
    "jaxppo", "purejaxrl", "cleanrl", "sb3", "sbx", "torchrl", "stoix", "rllib"
]
Rows = dict[str, Any]
Loss = tuple[Any, dict[str, jaxppo.Metric]]
Options = TypeVar("Options", bound="DataclassInstance")


class Now(NamedTuple):
    """What the networks that learn say of a minibatch."""

    log_probs: jax.Array
    entropy: jax.Array
    values: jax.Array
    kl: jax.Array  # KL(old || new), exact


class Coefs(NamedTuple):
    """Hyper-parameters that may change from step to step."""

    clip_eps: Any
    entropy_coef: Any
    value_coef: Any
    value_clip: Any
    kl_coef: Any  # None: no penalty


class System(NamedTuple):
    """A loss, and what belongs to it."""

    loss: Callable[[Now, Rows, Coefs], Loss]
    settings: dict[str, Any]
    # The advantages of a whole batch, where the loss does not normalise them itself.
    advantages: Callable[..., jax.Array] = lambda advantages, mask: advantages
    kl_control: Callable[..., jaxppo.Controller] | None = None


VALUE_LOSSES: dict[str, Callable[..., jax.Array]] = {
    "squared": lambda v, old, target, mask, _: jaxppo.squared_value(v, target, mask),
    # OpenAI Baselines, CleanRL, purejaxrl: the larger error of the value and the held.
    "clipped": lambda v, old, target, mask, eps: jaxppo.clipped_value(
        v, old, target, mask, clip_eps=eps
    ),
    # SB3: the held one alone, without a gradient once it went the wrong way.
    "bounded": lambda v, old, target, mask, eps: jaxppo.bounded_value(
        v, old, target, mask, clip_eps=eps
    ),
    # RLlib: no gradient at all once the squared error is beyond a limit.
    "clamped": lambda v, old, target, mask, limit: jax.numpy.minimum(
        jaxppo.squared_value(v, target, mask), limit / 2
    ),
    "huber": lambda v, old, target, mask, delta: jaxppo.huber_value(
        v, target, mask, delta=delta
    ),
}
"""By name: of value, old value, return, mask, and `value_clip`."""
VALUE_CLIPS = {"clamped": 10.0, "huber": 1.0}
"""What `value_clip` is if not given; 0.2 for the others."""


def ours(value_loss: ValueLoss) -> Callable[[Now, Rows, Coefs], Loss]:
    """The clipped surrogate, a value loss, entropy, and a KL penalty if asked for."""

    def loss(now: Now, rows: Rows, coefs: Coefs) -> Loss:
        mask = rows.get("mask")
        total, metrics = jaxppo.ppo_loss(
            now.log_probs,
            rows["log_probs"],
            rows["advantages"],
            mask,
            entropy=now.entropy,
            clip_eps=coefs.clip_eps,
            entropy_coef=coefs.entropy_coef,
        )
        error = VALUE_LOSSES[value_loss](
            now.values, rows["values"], rows["returns"], mask, coefs.value_clip
        )
        value = jaxppo.token_mean(error, mask)
        loss = total.total + coefs.value_coef * value.total
        metrics |= jax.lax.stop_gradient({"value_loss": value})
        if coefs.kl_coef is not None:
            kl = jaxppo.token_mean(now.kl, mask)
            loss = loss + coefs.kl_coef * kl.total
            metrics |= jax.lax.stop_gradient({"kl": kl})
        return jaxppo.Mean(loss, total.count), metrics  # all of one count

    return loss


def diagnostics(now: Now, rows: Rows, coefs: Coefs) -> dict[str, jaxppo.Metric]:
    """Ours, under our names, beside what a system's own loss reports."""
    _, metrics = ours("squared")(now, rows, coefs)
    return {k: x for k, x in metrics.items() if not k.endswith("loss")}


def _whole(
    recipe: Callable[..., Loss],
    more: Callable[[Now, Rows, Coefs], dict[str, Any]] = lambda now, rows, coefs: {},
) -> Callable[[Now, Rows, Coefs], Loss]:
    """Of a recipe of the usual form; `more` is what else it takes."""

    def loss(now: Now, rows: Rows, coefs: Coefs) -> Loss:
        return recipe(
            now.log_probs,
            rows["log_probs"],
            rows["advantages"],
            rows.get("mask"),
            values=now.values,
            returns=rows["returns"],
            entropy=now.entropy,
            clip_eps=coefs.clip_eps,
            value_coef=coefs.value_coef,
            entropy_coef=coefs.entropy_coef,
            **more(now, rows, coefs),
        )

    return loss


def _torchrl(now: Now, rows: Rows, coefs: Coefs) -> Loss:
    advantages, mask = rows["advantages"], rows.get("mask")
    return recipes.torchrl.clip_ppo(
        now.log_probs,
        now.values,
        now.entropy,
        rows["log_probs"],
        recipes.torchrl.standardized(advantages)
        if mask is None
        else jaxppo.whiten(advantages, mask),
        rows["values"],
        rows["returns"],
        mask,
        clip_eps=coefs.clip_eps,
        clip_eps_high=coefs.clip_eps,
        value_coef=coefs.value_coef,
        entropy_coef=coefs.entropy_coef,
    )


def _stoix(now: Now, rows: Rows, coefs: Coefs) -> Loss:
    actor, metrics = recipes.stoix.actor(
        now.log_probs,
        rows["log_probs"],
        rows["advantages"],
        rows.get("mask"),
        entropy=now.entropy,
        clip_eps=coefs.clip_eps,
        entropy_coef=coefs.entropy_coef,
    )
    critic, more = recipes.stoix.critic(
        now.values,
        rows["values"],
        rows["returns"],
        rows.get("mask"),
        clip_eps=coefs.clip_eps,
        value_coef=coefs.value_coef,
    )
    return {"actor": actor, "critic": critic}, metrics | more


def _old_values(now: Now, rows: Rows, coefs: Coefs) -> dict[str, Any]:
    return {"old_values": rows["values"]}


def _kl_penalty(now: Now, rows: Rows, coefs: Coefs) -> dict[str, Any]:
    return {"kl": now.kl, "kl_coef": coefs.kl_coef}


_USUAL: dict[str, Any] = dict(adam_eps=1e-5, clip_eps=0.2, value_coef=0.5)
_USUAL |= dict(joint_clip=True, anneal=("learning_rate",))
_CLEANRL = _USUAL | dict(truncation="terminal")
_SB3 = _USUAL | dict(anneal=(), entropy_coef=0.0)
_RLLIB: dict[str, Any] = dict(adam_eps=1e-8, clip_eps=0.3, value_coef=1.0)
_RLLIB |= dict(max_grad_norm=math.inf, anneal=(), entropy_coef=0.0, kl_target=0.01)
SYSTEMS: dict[str, System] = {
    "purejaxrl": System(_whole(recipes.purejaxrl.ppo, _old_values), _CLEANRL),
    "cleanrl": System(_whole(recipes.cleanrl.ppo, _old_values), _CLEANRL),
    "sb3": System(_whole(recipes.sb3.ppo), _SB3),
    "sbx": System(_whole(recipes.sbx.ppo), _SB3 | dict(joint_clip=False)),
    "torchrl": System(_torchrl, _SB3 | dict(value_coef=1.0, entropy_coef=0.01)),
    "stoix": System(
        _stoix, _USUAL | dict(joint_clip=False), recipes.stoix.standardised
    ),
    "rllib": System(
        _whole(recipes.rllib.ppo, _kl_penalty),
        _RLLIB,
        recipes.rllib.normalised,
        recipes.rllib.kl_coef_control,
    ),
}


def as_in(
    system: SystemName, options: Options, default: Options | None = None
) -> Options:
    """Options of PPO, with what the system does differently.

    Args:
        system: whose.
        options: of PPO.
        default: what differs from these was chosen, and stays.
    """
    settings = SYSTEMS[system].settings
    if default is not None:
        chosen = lambda name: getattr(options, name) != getattr(default, name)
        settings = {k: x for k, x in settings.items() if not chosen(k)}
    return dataclasses.replace(options, **settings, system=system)
