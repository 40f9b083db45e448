// The page around surrogates.js: sliders in; numbers, plots and Python out. Its state is
// in the address behind the #, so that a link restores it. Nothing moves by itself.
"use strict";

(() => {
  const { MODES, slidersOf, start, evaluate, code } = globalThis.oneToken;
  const $ = (id) => document.getElementById(`ot-${id}`);
  const FIRST = "clipped_surrogate";
  let state = start(FIRST);

  // --- elements ---

  const element = (tag, attributes = {}, ...children) => {
    const made = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) {
      if (value !== undefined) made.setAttribute(key, value);
    }
    made.append(...children);
    return made;
  };

  const drawn = (tag, attributes, text = "") => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.textContent = text;
    return made;
  };

  // Two digits, or all of them, if an address brought more than sliders have.
  const plain = (x) => (Number(x.toFixed(2)) === x ? x.toFixed(2) : String(x));
  const shown = (x) => (Math.abs(x) < 5e-5 ? 0 : x).toFixed(4);

  // --- controls ---

  const row = (key, { min, max, step, on }) => {
    const id = `ot-${key}`;
    const range = element("input", { type: "range", id, min, max, step });
    const number = element("output", { for: id, id: `${id}-value` });
    range.addEventListener("input", () => set(key, Number(range.value)));
    const name = element("label", { for: id }, key);
    const made = element("div", { class: "ot-row" }, name, range, number);
    if (on !== undefined) {
      const use = element("input", { type: "checkbox", id: `${id}-use` });
      use.setAttribute("aria-label", `use ${key}`);
      use.addEventListener("change", () => set(key, use.checked ? on : null));
      made.prepend(use);
    }
    return made;
  };

  const set = (key, value) => change({ ...state, [key]: value });

  // Rows are made when the mode changes, and only then, so that focus stays.
  let rows = "";
  const renderControls = () => {
    const sliders = slidersOf(state.mode);
    if (rows !== state.mode) {
      const made = Object.entries(sliders).map(([key, slider]) => row(key, slider));
      $("sliders").replaceChildren(...made);
      $("mode").value = rows = state.mode;
    }
    for (const [key, { on }] of Object.entries(sliders)) {
      const value = state[key];
      $(key).disabled = value === null;
      $(key).value = value ?? on;
      $(`${key}-value`).value = value === null ? "off" : plain(value);
      if (on !== undefined) $(`${key}-use`).checked = value !== null;
    }
  };

  // --- plots ---

  const WIDTH = 340, HEIGHT = 190, LEFT = 40, RIGHT = 8, TOP = 8, BOTTOM = 34;
  const LAST = slidersOf(FIRST).ratio.max;
  const RATIOS = Array.from({ length: 800 }, (_, i) => ((i + 1) * LAST) / 800);

  // A round number, not below x.
  const nice = (x) => {
    const power = 10 ** Math.floor(Math.log10(x));
    return [1, 2, 3, 5, 10].map((n) => n * power).find((n) => n >= x);
  };

  const across = (ratio) => LEFT + (ratio / LAST) * (WIDTH - LEFT - RIGHT);

  const plot = (svg, name, points, here) => {
    // Near 0 and at the far end some terms are huge: the scale is that of the middle.
    const middle = points.filter((_, i) => RATIOS[i] > 0.2 && RATIOS[i] < 3);
    const top = nice(1.05 * Math.max(0.4, ...middle.map(({ y }) => Math.abs(y))));
    const room = (HEIGHT - TOP - BOTTOM) / 2;
    const up = (y) => TOP + room * (1 - y / top);
    const inside = (y) => Math.min(Math.max(y, -top), top);
    const parts = [];

    for (const [from, to] of spans(points)) {
      const width = across(to) - across(from);
      const place = { x: across(from), y: TOP, width, height: 2 * room };
      parts.push(drawn("rect", { class: "ot-idle", ...place }));
    }
    for (const y of [-top, -top / 2, 0, top / 2, top]) {
      const line = { x1: LEFT, x2: WIDTH - RIGHT, y1: up(y), y2: up(y) };
      parts.push(drawn("line", { class: y === 0 ? "ot-axis" : "ot-grid", ...line }));
      const at = { x: LEFT - 5, y: up(y) + 4, "text-anchor": "end" };
      parts.push(drawn("text", at, String(Number(y.toPrecision(3)))));
    }
    for (let x = 0; x <= LAST; x += 1) {
      const line = { x1: across(x), x2: across(x), y1: TOP, y2: TOP + 2 * room };
      parts.push(drawn("line", { class: x === 1 ? "ot-axis" : "ot-grid", ...line }));
      const at = { x: across(x), y: HEIGHT - BOTTOM + 14, "text-anchor": "middle" };
      parts.push(drawn("text", at, String(x)));
    }
    const title = { x: across(LAST / 2), y: HEIGHT - 4, "text-anchor": "middle" };
    parts.push(drawn("text", title, "ratio pi / pi_old"));
    // The line leaves at the edge, rather than run along it.
    let pen = "M";
    const path = points.map(({ y }, i) => {
      const before = points[i - 1] ?? { y };
      const step = `${pen}${across(RATIOS[i]).toFixed(1)} ${up(inside(y)).toFixed(1)}`;
      const out = Math.abs(y) > top && Math.abs(before.y) > top;
      pen = out ? "M" : "L";
      return out ? "" : step;
    });
    parts.push(drawn("path", { class: "ot-curve", d: path.join("") || "M0 0" }));
    const out = Math.abs(here) > top ? " ot-out" : "";
    const dot = { cx: across(state.ratio), cy: up(inside(here)), r: 6 };
    parts.push(drawn("circle", { class: `ot-here${out}`, ...dot }));
    svg.replaceChildren(...parts);
    const where = `${name} ${shown(here)} at ratio ${state.ratio}`;
    svg.setAttribute("aria-label", out ? `${where}, outside of the plot` : where);
  };

  // Where the term has let go of the token: from ratio to ratio.
  const spans = (points) => {
    const found = [];
    points.forEach(({ idle }, i) => {
      if (!idle) return;
      if (points[i - 1]?.idle) found.at(-1)[1] = RATIOS[i];
      else found.push([RATIOS[i], RATIOS[i]]);
    });
    return found;
  };

  const renderPlots = (here) => {
    const all = RATIOS.map((ratio) => evaluate({ ...state, ratio }));
    const points = (y) => all.map((x) => ({ y: y(x), idle: x.pull === 0 }));
    plot($("objective"), "objective", points((x) => -x.loss), -here.loss);
    plot($("pulls"), "pull", points((x) => x.pull), here.pull);
  };

  // --- the whole ---

  const render = () => {
    const here = evaluate(state);
    renderControls();
    $("loss").textContent = shown(here.loss);
    $("pull").textContent = shown(here.pull);
    $("branch").textContent = here.branch;
    $("branch").dataset.idle = here.pull === 0;
    $("code").textContent = code(state);
    renderPlots(here);
    return here;
  };

  let settled;
  const change = (to) => {
    state = to;
    const { loss, pull, branch } = render();
    // Once the slider rests: browsers refuse a change of address for every step of it,
    // and nobody wants every step read out.
    clearTimeout(settled);
    settled = setTimeout(() => {
      say(`loss ${shown(loss)}, pull ${shown(pull)}, ${branch}`);
      history.replaceState(null, "", `#${address()}`);
    }, 250);
  };

  const say = (text) => {
    $("status").textContent = text;
  };

  const address = () => {
    const given = Object.entries(state).filter(([, value]) => value !== null);
    return new URLSearchParams(given).toString();
  };

  // What an address says, as far as it can be: any slider's number, held to its ends.
  const restore = () => {
    const given = new URLSearchParams(location.hash.slice(1));
    const mode = given.get("mode");
    if (!Object.hasOwn(MODES, mode ?? "")) return;
    state = start(mode);
    for (const [key, { value, min, max, on }] of Object.entries(slidersOf(mode))) {
      const number = Number.parseFloat(given.get(key));
      const none = on === undefined ? value : null;
      const known = Number.isFinite(number);
      state[key] = known ? Math.min(Math.max(number, min), max) : none;
    }
  };

  const copy = async () => {
    try {
      await navigator.clipboard.writeText(code(state));
      say("copied");
      $("copy").textContent = "Copied";
    } catch {
      // Not allowed here: select it, for the reader's own keys.
      getSelection().selectAllChildren($("code"));
      $("copy").textContent = "Selected";
    }
    setTimeout(() => ($("copy").textContent = "Copy"), 1500);
  };

  for (const [mode, { title }] of Object.entries(MODES)) {
    $("mode").append(element("option", { value: mode }, title));
  }
  $("mode").addEventListener("change", () => {
    const { ratio, advantages } = state;
    change({ ...start($("mode").value), ratio, advantages });
  });
  $("reset").addEventListener("click", () => change(start(state.mode)));
  $("copy").addEventListener("click", copy);
  addEventListener("hashchange", () => {
    restore();
    render();
  });
  for (const part of document.querySelectorAll("#one-token > [hidden]")) {
    part.hidden = false;
  }
  restore();
  render();
})();
