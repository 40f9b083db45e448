// The losses of one token, as jaxppo computes them, and their pull on log pi (minus the
// derivative). Nothing of a page is in here: tests/test_interactive.py runs it in node
// and in a browser, and compares each term with the very code that `code` writes.
"use strict";

globalThis.oneToken = (() => {
  // A slider: where it starts, its ends, its step, and if `on` is there, that it starts
  // off (Python's None) and at `on` when it is switched on.
  const slider = (value, min, max, step, on) => ({ value, min, max, step, on });
  const off = (on, min, max, step) => slider(null, min, max, step, on);
  const clip = (x, low, high) => Math.min(Math.max(x, low), high);
  const sigmoid = (x) => 1 / (1 + Math.exp(-x));

  const COMMON = {
    ratio: slider(1.3, 0.01, 4, 0.01),
    advantages: slider(1, -3, 3, 0.1),
  };
  // The probability of the token under pi_old; 4 times it must stay below 1.
  const OLD_PROB = { old_prob: slider(0.2, 0.01, 0.24, 0.01) };

  // In the terms: r ratio, x its logarithm, a advantage, p pi. At a bound, exactly, the
  // slope inside it holds, as in the library.
  const held = (branch, loss) => ({ loss, pull: 0, branch });

  // A constant weight times log pi: the loss is not an integral of the pull.
  const weighed = (branch, weight, { a, p }) => ({
    loss: -weight * a * Math.log(p),
    pull: weight * a,
    branch,
  });

  const masked = (far, { r, a, low, high }) => {
    if (a > 0 && r > 1 && far > (high ?? low)) return held("too far up", 0);
    if (a <= 0 && r < 1 && far > low) return held("too far down", 0);
    return { loss: -r * a, pull: r * a, branch: "trusted" };
  };

  const penalised = (kl, slope, { r, a, coef }) => {
    const pull = r * a - coef * slope;
    const back = a === 0 ? "penalty alone" : "pulled back";
    const branch = pull * a > 0 ? "with the advantage" : back;
    return { loss: -r * a + coef * kl, pull, branch };
  };

  const ppo = ({ r, a, clip_eps, clip_eps_high, dual_clip }) => {
    const high = 1 + (clip_eps_high ?? clip_eps);
    if (a >= 0 && r > high) return held("clipped above", -high * a);
    if (a < 0 && r < 1 - clip_eps) return held("clipped below", -(1 - clip_eps) * a);
    if (a < 0 && r > (dual_clip ?? Infinity)) {
      return held("dual-clipped", -dual_clip * a);
    }
    return { loss: -r * a, pull: r * a, branch: "unclipped" };
  };

  const geometric = ({ r, x, a, clip_eps, clip_eps_high }) => {
    const high = clip_eps_high ?? clip_eps;
    if (a > 0 && x > high) return held("clipped above", -Math.exp(high) * a);
    if (a < 0 && x < -clip_eps) return held("clipped below", -Math.exp(-clip_eps) * a);
    return { loss: -r * a, pull: r * a, branch: "unclipped" };
  };

  const cispo = ({ low, high, ...at }) => {
    const inside = at.r < low ? "weight held from below" : "weight = ratio";
    const branch = at.r > high ? "weight held from above" : inside;
    return weighed(branch, clip(at.r, low, high), at);
  };

  const topr = ({ cap, ...at }) => {
    if (at.a > 0) return weighed("weight 1", 1, at);
    const branch = at.r > cap ? "weight held from above" : "weight = ratio";
    return weighed(branch, Math.min(at.r, cap), at);
  };

  const softGated = ({ r, a, temperature, temperature_negative }) => {
    const tau = a > 0 ? temperature : temperature_negative;
    const gate = sigmoid(tau * (r - 1));
    const slope = 4 * gate * (1 - gate);
    const branch = `soft gate, slope ${slope.toFixed(2)}`;
    return { loss: (-4 / tau) * gate * a, pull: slope * r * a, branch };
  };

  const vespo = ({ k, lambda_, k_negative, lambda_negative, ...at }) => {
    const [power, decay] = at.a >= 0 ? [k, lambda_] : [k_negative, lambda_negative];
    const x = clip(at.x, Math.log(1e-8), 20);
    const weight = Math.exp(power * x + decay * (1 - Math.exp(x)));
    return weighed(`soft gate, weight ${weight.toFixed(2)}`, weight, at);
  };

  const shaped = ({ a, p, gamma }) => {
    const s = p / (p + gamma);
    const branch = p > gamma ? "likelier than gamma" : "rarer than gamma";
    return { loss: -a * s, pull: a * s * (1 - s), branch };
  };

  const quadratic = ({ r, a, clip_eps }) => {
    const pull = r * a - (Math.abs(a) * (r - 1) * r) / clip_eps;
    const loss = (Math.abs(a) * (r - 1) ** 2) / (2 * clip_eps) - r * a;
    const branch = pull * a >= 0 ? "before the optimum" : "past the optimum, pulled back";
    return { loss, pull, branch };
  };

  const discovered = ({ r, x, a, alpha, beta }) => {
    const [moved, slope, width] = a >= 0 ? [(r - 1) * a, r * a, alpha] : [x * a, a, beta];
    const bent = Math.tanh(moved / width);
    const drift = Math.max(moved - width * bent, 0);
    const drifts = drift > 0;
    return {
      loss: drift - r * a,
      pull: r * a - (drifts ? bent ** 2 * slope : 0),
      branch: drifts ? "held back by the drift" : "no drift",
    };
  };

  const binaryKL = ({ p, old_prob: q, x }) =>
    -q * x + (1 - q) * (Math.log(1 - q + 1e-8) - Math.log(1 - p + 1e-8));

  // `python` is what leads to the loss, and last the loss itself, as jaxppo is called;
  // {} stands for the hyper-parameters.
  const gate = (divergence) => [
    `far = jaxppo.${divergence}(old + x, old)`,
    "keep = jaxppo.trust_region_mask(x, A, far, {})",
    "jnp.where(keep, jaxppo.unclipped_surrogate(x, A), 0)",
  ];
  const eps = (value) => ({
    clip_eps: slider(value, 0.01, 0.99, 0.01),
    clip_eps_high: off(0.28, 0.01, 2, 0.01),
  });
  const trust = {
    ...OLD_PROB,
    low: slider(0.2, 0, 1, 0.01),
    high: off(0.3, 0, 1, 0.01),
  };
  const MODES = {
    clipped_surrogate: {
      title: "PPO: clipped, dual clip",
      sliders: { ...eps(0.2), dual_clip: off(3, 1.05, 4, 0.05) },
      term: ppo,
      python: ["jaxppo.clipped_surrogate(x, A, {})"],
    },
    geometric_mean_surrogate: {
      title: "GMPO: clipped in logs, one token",
      sliders: eps(0.4),
      term: geometric,
      python: ["jaxppo.geometric_mean_surrogate(x, A, {})"],
    },
    unclipped_surrogate: {
      title: "unclipped: IS, CPI",
      sliders: {},
      term: ({ r, a }) => ({ loss: -r * a, pull: r * a, branch: "unclipped" }),
      python: ["jaxppo.unclipped_surrogate(x, A)"],
    },
    policy_gradient: {
      title: "REINFORCE: no ratio",
      sliders: OLD_PROB,
      term: (at) => weighed("weight 1", 1, at),
      python: ["jaxppo.policy_gradient(old + x, A)"],
    },
    cispo: {
      title: "CISPO: clipped weight",
      sliders: {
        ...OLD_PROB,
        low: slider(0, 0, 1, 0.05),
        high: slider(2, 1, 5, 0.05),
      },
      term: cispo,
      python: ["jaxppo.cispo(old + x, x, A, {})"],
    },
    topr: {
      title: "TOPR: tapered weight",
      sliders: { ...OLD_PROB, cap: slider(1, 0.05, 4, 0.05) },
      term: topr,
      python: ["jaxppo.topr(old + x, x, A, {})"],
    },
    soft_gated_surrogate: {
      title: "SAPO: soft gate",
      sliders: {
        temperature: slider(1, 0.05, 5, 0.05),
        temperature_negative: slider(1.05, 0.05, 5, 0.05),
      },
      term: softGated,
      python: ["jaxppo.soft_gated_surrogate(x, A, {})"],
    },
    vespo_weights: {
      title: "VESPO: smooth weight, one token",
      sliders: {
        ...OLD_PROB,
        k: slider(2, 0, 5, 0.1),
        lambda_: slider(3, 0, 5, 0.1),
        k_negative: slider(3, 0, 5, 0.1),
        lambda_negative: slider(2, 0, 5, 0.1),
      },
      term: vespo,
      python: [
        "weights = jaxppo.vespo_weights(x, A, {})",
        "(weights * jaxppo.policy_gradient(old + x, A))",
      ],
    },
    shaped_off_policy: {
      title: "LUFFY: shaped",
      sliders: { ...OLD_PROB, gamma: slider(0.1, 0.01, 1, 0.01) },
      term: shaped,
      python: ["jaxppo.shaped_off_policy(old + x, A, {})"],
    },
    binary_tv: {
      title: "DPPO: masked by total variation",
      sliders: trust,
      term: (at) => masked(Math.abs(at.p - at.old_prob), at),
      python: gate("binary_tv"),
    },
    binary_kl: {
      title: "DPPO: masked by binary KL",
      sliders: trust,
      term: (at) => masked(binaryKL(at), at),
      python: gate("binary_kl"),
    },
    quadratic_surrogate: {
      title: "SPO (simple): quadratic",
      sliders: { clip_eps: slider(0.2, 0.01, 2, 0.01) },
      term: quadratic,
      python: ["jaxppo.quadratic_surrogate(x, A, {})"],
    },
    discovered_surrogate: {
      title: "discovered PO: drift",
      sliders: { alpha: slider(2, 0.1, 5, 0.1), beta: slider(0.6, 0.1, 5, 0.1) },
      term: discovered,
      python: ["jaxppo.discovered_surrogate(x, A, {})"],
    },
    kl_k2: {
      title: "KL penalty: k2 to the old policy",
      sliders: { coef: slider(0.5, 0, 2, 0.05) },
      term: (at) => penalised(at.x ** 2 / 2, at.x, at),
      python: ["(jaxppo.unclipped_surrogate(x, A) + coef * jaxppo.kl_k2(x))"],
    },
    kl_k3: {
      title: "KL penalty: k3 to the old policy",
      sliders: { coef: slider(0.5, 0, 2, 0.05) },
      term: (at) => penalised(Math.expm1(-at.x) + at.x, -Math.expm1(-at.x), at),
      python: ["(jaxppo.unclipped_surrogate(x, A) + coef * jaxppo.kl_k3(x))"],
    },
  };

  const slidersOf = (mode) => ({ ...COMMON, ...MODES[mode].sliders });

  const start = (mode) => {
    const entries = Object.entries(slidersOf(mode));
    return { mode, ...Object.fromEntries(entries.map(([key, { value }]) => [key, value])) };
  };

  // {loss, pull, branch} of a state, which is what `start` returns, with other numbers.
  const evaluate = ({ mode, ratio: r, advantages: a, ...hyper }) => {
    const at = { r, a, x: Math.log(r), p: (hyper.old_prob ?? 1) * r, ...hyper };
    const { loss, pull, branch } = MODES[mode].term(at);
    const idle = a === 0 && pull === 0;
    return { loss: loss + 0, pull: pull + 0, branch: idle ? "no advantage" : branch };
  };

  // As Python writes a float: 1 would be an integer there.
  const float = (x) => (Number.isInteger(x) ? x.toFixed(1) : String(x));

  // Python that returns the loss and the pull of a state.
  const code = ({ mode, ratio, advantages, old_prob, coef, ...hyper }) => {
    const given = Object.entries(hyper).filter(([, value]) => value !== null);
    const keywords = given.map(([key, value]) => `${key}=${float(value)}`).join(", ");
    const body = MODES[mode].python.map((line) => line.replace("{}", keywords));
    const last = `return ${body.pop()}[0]`;
    const array = (x) => `jnp.array([${float(x)}])`;
    return [
      "import jax, jax.numpy as jnp, jaxppo",
      "",
      `x, A = jnp.log(${array(ratio)}), ${array(advantages)}  # log-ratio, advantage`,
      ...(old_prob === undefined ? [] : [`old = jnp.log(${array(old_prob)})`]),
      ...(coef === undefined ? [] : [`coef = ${float(coef)}`]),
      "",
      "def loss(x):",
      ...[...body, last].map((line) => `    ${line}`),
      "",
      "loss(x), -jax.grad(loss)(x)",
    ].join("\n");
  };

  return { MODES, slidersOf, start, evaluate, code };
})();
