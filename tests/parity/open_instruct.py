"""open-instruct e6c3044a: what it is called with to give the recorded outputs."""

from jaxppo.recipes import open_instruct


def dapo(**kwargs):
    return lambda logp, b: open_instruct.dapo(logp, b.old, b.adv, b.mask, **kwargs)


def corrected(logp, b):
    weights, _ = open_instruct.rho_weights(b.old, b.rollout, b.mask)
    return open_instruct.dapo(logp, b.old, b.adv, b.mask, weights=weights)


def with_kl(estimator):
    return lambda logp, b: open_instruct.dapo(
        logp, b.old, b.adv, b.mask, kl=estimator(logp, b.ref, b.mask), kl_coef=0.04
    )


def with_kl4(logp, b):
    kl = open_instruct.kl4(logp, b.old, b.ref, b.mask)
    return open_instruct.dapo(logp, b.old, b.adv, b.mask, kl=kl, kl_coef=0.04)


LOSSES = {
    "open-instruct/dapo token-mean": dapo(),
    "open-instruct/cispo token-mean": lambda logp, b: open_instruct.cispo(
        logp, b.old, b.adv, b.mask
    ),
    "open-instruct/dapo + rho clamp[0,2]": corrected,
    "open-instruct/dapo beta .04 kl_estimator=0": with_kl(open_instruct.kl1),
    "open-instruct/dapo beta .04 kl_estimator=1": with_kl(open_instruct.kl2),
    "open-instruct/dapo beta .04 kl_estimator=2": with_kl(open_instruct.kl3),
    "open-instruct/dapo beta .04 kl_estimator=3": with_kl4,
}

VALUES = {}

# No value was recorded of these: who tests them.
UNREFERENCED = dict.fromkeys(
    [
        "sequence_rho_weights",
        "divergence_rho_weights",
        "centered_advantages",
        "standard_advantages",
    ],
    "test_recipe_oracles.py::test_a_value_is_its_formula",
)
