// The explorer of all runs: two numbers of every run as a drawing. No library, no request: it works from a file.
(function () {
  "use strict";
  const byId = (id) => document.getElementById(id);
  const form = byId("explorer-form"), svg = byId("explorer-plot"), detail = byId("explorer-detail");
  if (!form || !svg) return;
  const { fields, measures, runs: lists } = JSON.parse(byId("explorer-data").textContent);
  const runs = lists.map((list) => Object.fromEntries(fields.map((name, i) => [name, list[i]])));
  const LEFT = 52, RIGHT = 12, TOP = 10, BOTTOM = 44, SIZE = 5;
  // A shape for each term, so that colour is not needed to tell them apart.
  const SHAPES = {
    control: `M${-SIZE},0a${SIZE},${SIZE} 0 1 0 ${2 * SIZE},0a${SIZE},${SIZE} 0 1 0 ${-2 * SIZE},0z`,
    "upper tail": "M0,-6L6,5L-6,5z", "lower tail": "M0,6L6,-5L-6,-5z", "not distilled": "M-4,-4H4V4H-4z",
  };
  const OTHER = "M0,-6L6,0L0,6L-6,0z";
  let points = [], chosen = null;

  function make(name, attributes, parent, text) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    parent.append(node);
    return node;
  }

  function html(name, attributes, parent, text) {
    const node = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    parent.append(node);
    return node;
  }

  const shape = (term) => SHAPES[term] || OTHER;
  const kind = (term) => "term-" + (term in SHAPES ? term.replace(" ", "-") : "other");
  const written = (value) => (value === null ? "-" : String(value).replace("-", "\u2212"));

  // From values to pixels, with round ticks; `log` for numbers that span powers of ten.
  function scale(measure, values, from, to) {
    const size = (v) => (measure.log ? Math.log10(v) : v);
    let low = Math.min(...values.map(size)), high = Math.max(...values.map(size));
    const margin = (high - low) * 0.05 || (measure.log ? 0.3 : 1);
    [low, high] = [low - margin, high + margin];
    const place = (v) => from + ((size(v) - low) / (high - low)) * (to - from);
    const most = Math.max(3, Math.abs(to - from) / 60), ticks = [];
    if (measure.log) {
      const steps = (high - low) * 3 < most ? [1, 2, 5] : [1];
      const skip = Math.max(1, Math.ceil((high - low) / most));
      for (let e = Math.floor(low); e <= high; e += skip)
        for (const s of steps) ticks.push(Number((s * 10 ** e).toPrecision(1)));
      if (ticks.filter((v) => size(v) >= low && size(v) <= high).length < 2)
        ticks.push(...[low, high].map((v) => Number((10 ** (v + (v === low ? margin : -margin))).toPrecision(2))));
    } else {
      const rough = (high - low) / most, unit = 10 ** Math.floor(Math.log10(rough));
      const step = [1, 2, 5, 10].map((s) => s * unit).find((s) => s >= rough);
      for (let v = Math.ceil(low / step); v * step <= high; v++) ticks.push(Number((v * step).toPrecision(6)));
    }
    return { place, ticks: [...new Set(ticks)].filter((v) => size(v) >= low && size(v) <= high) };
  }

  function axes(x, y, sx, sy, width, height) {
    for (const v of sx.ticks) {
      make("line", { x1: sx.place(v), x2: sx.place(v), y1: TOP, y2: height - BOTTOM, class: "grid" }, svg);
      make("text", { x: sx.place(v), y: height - BOTTOM + 16, "text-anchor": "middle" }, svg, written(v));
    }
    for (const v of sy.ticks) {
      make("line", { x1: LEFT, x2: width - RIGHT, y1: sy.place(v), y2: sy.place(v), class: "grid" }, svg);
      make("text", { x: LEFT - 6, y: sy.place(v) + 4, "text-anchor": "end" }, svg, written(v));
    }
    make("text", { x: (LEFT + width - RIGHT) / 2, y: height - 8, "text-anchor": "middle" }, svg, x.label);
    const turn = `translate(12 ${(TOP + height - BOTTOM) / 2}) rotate(-90)`;
    make("text", { transform: turn, "text-anchor": "middle" }, svg, y.label);
  }

  function draw() {
    const ask = Object.fromEntries(new FormData(form));
    const [ix, iy] = ["x", "y"].map((name) => measures.findIndex((m) => m.name === ask[name]));
    const x = measures[ix], y = measures[iy];
    const kept = runs.filter((r) => ["dataset", "method"].every((name) => !ask[name] || r[name] === ask[name]));
    const drawable = (v, m) => v !== null && (!m.log || v > 0);
    const shown = kept.filter((r) => drawable(r.values[ix], x) && drawable(r.values[iy], y));
    shown.sort((a, b) => a.values[ix] - b.values[ix] || a.values[iy] - b.values[iy]);
    byId("explorer-count").textContent = `${shown.length} of ${kept.length} runs have both numbers.`;
    const width = svg.clientWidth || 640, height = Math.round(Math.min(400, Math.max(300, width * 0.7)));
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("aria-label", `${shown.length} runs as points: ${x.label} across, ${y.label} up`);
    svg.replaceChildren();
    points = [];
    legend(shown);
    if (!shown.length) return;
    const sx = scale(x, shown.map((r) => r.values[ix]), LEFT, width - RIGHT);
    const sy = scale(y, shown.map((r) => r.values[iy]), height - BOTTOM, TOP);
    axes(x, y, sx, sy, width, height);
    // Settings take few values: points of one value are spread a little, always in the same way.
    const spread = (m, i) => (m.kind === "Settings" ? (((i * 0.618) % 1) - 0.5) * 14 : 0);
    points = shown.map((run, i) => {
      const at = [sx.place(run.values[ix]) + spread(x, i), sy.place(run.values[iy]) + spread(y, i * 3 + 1)];
      const words = `${run.arm}, ${run.dataset}: ${x.label} ${written(run.values[ix])}, ` +
        `${y.label} ${written(run.values[iy])}`;
      const node = make("path", {
        d: shape(run.term), transform: `translate(${at.map((v) => v.toFixed(1)).join(" ")})`, tabindex: -1,
        role: "button", "aria-label": words, class: `${kind(run.term)} ${run.part}`,
      }, svg);
      make("title", {}, node, words);
      node.addEventListener("focus", () => choose(node, run));
      node.addEventListener("click", () => node.focus());
      return node;
    });
    const again = shown.findIndex((r) => r.key === chosen);
    points[Math.max(0, again)].setAttribute("tabindex", 0);
    if (again >= 0) points[again].classList.add("chosen");
  }

  function legend(shown) {
    byId("explorer-legend").replaceChildren();
    for (const term of [...new Set(shown.map((r) => r.term))].sort()) {
      const item = html("li", {}, byId("explorer-legend"));
      const mark = make("svg", { viewBox: "-8 -8 16 16", width: 16, height: 16, "aria-hidden": true }, item);
      make("path", { d: shape(term), class: kind(term) }, mark);
      item.append(` ${term} (${shown.filter((r) => r.term === term).length})`);
    }
    if (shown.some((r) => r.part !== "test"))
      html("li", {}, byId("explorer-legend"), "hollow: judged on a validation part");
  }

  function choose(node, run) {
    for (const point of points) {
      point.classList.toggle("chosen", point === node);
      point.setAttribute("tabindex", point === node ? 0 : -1);
    }
    chosen = run.key;
    detail.replaceChildren();
    html("p", { class: "what" }, detail, `${run.arm} on ${run.dataset}, judged on the ${run.part} part`);
    const list = html("dl", {}, detail);
    measures.forEach((measure, i) => {
      if (run.values[i] === null) return;
      const pair = html("div", {}, list);
      html("dt", {}, pair, measure.label);
      html("dd", {}, pair, written(run.values[i]));
    });
    if (run.picture)
      html("img", {
        src: `../_static/sets/${run.picture}.webp`,
        alt: `Distilled images of this run, ${run.arm} on ${run.dataset}: one column a class, at most five of each.`,
      }, detail);
    else html("p", {}, detail, "The project keeps no images of this run.");
    const links = html("p", {}, detail);
    html("a", { href: `records.html#record-${run.key}` }, links, "Its row in the table");
    links.append(", ");
    html("a", { href: `../_static/records/${run.key}.json` }, links, "its record");
  }

  function remember() {
    history.replaceState(null, "", "#" + new URLSearchParams(new FormData(form)));
  }

  for (const [name, value] of new URLSearchParams(location.hash.slice(1))) {
    const list = form.elements[name];
    if (list && Array.from(list.options).some((o) => o.value === value)) list.value = value;
  }
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, Home: -Infinity, End: Infinity }[event.key];
    const now = points.indexOf(document.activeElement);
    if (step === undefined || now < 0) return;
    event.preventDefault();
    points[Math.min(points.length - 1, Math.max(0, now + step))].focus();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("change", () => { draw(); remember(); });
  let waiting;
  window.addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(draw, 100); });
  form.hidden = byId("explorer").hidden = false;
  draw();
})();
