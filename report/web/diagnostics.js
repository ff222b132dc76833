// Diagnostics: what preference has to learn from, where in the model it pushes, how far the policy has moved.

function diagnosing(found) {
  const grid = charts => charts.length ? el("div", {class: "grid"},
    ...charts.map(c => chart({...c, format: c.share ? percent : number}, c.names ? "layer" : "step"))) : null;
  const maps = found.maps.length ? el("div", {class: "grid wide"}, ...found.maps.map(heat)) : "";
  const none = "No diagnosis was taken: log.diagnose_every is 0, or the run is older than its diagnoses.";
  return [
    titled("What there is to learn from", grid(found.learning), "No groups were sampled."),
    titled("Gradients of the preference on text and on audio", grid(found.gradients), none), maps,
    titled("Shift from the start policy", grid(found.shifts), none),
  ];
}

const MAPS = {  // value -> [signed depth of its colour in -1..1]; classes and names of the two sides
  ratio: {depth: v => Math.max(-1, Math.min(1, Math.log2(v) / 3)), up: ["c1", "text larger"], down: ["c2", "audio larger"]},
  cosine: {depth: v => Math.sign(v) * Math.sqrt(Math.min(1, Math.abs(v))), up: ["c3", "the same way"], down: ["c5", "against each other"]},
};

function heat(spec) {  // layer x step; from input at the bottom to head at the top
  const {depth, up, down} = MAPS[spec.scale], count = spec.rows.length, high = Math.max(5, Math.min(18, 300 / count));
  const height = TOP + count * high + BOTTOM, value = el("b", {}), where = el("span", {class: "where"});
  const legend = el("p", {class: "legend"}, ...[up, down].map(([look, name]) => el("span", {class: look}, el("i", {}), name)),
    spec.values.flat().includes(null) ? el("span", {class: "cu"}, el("i", {}), "not defined") : "", el("span", {}, value));
  const lines = spec.rows.map((name, i) => `${name}: ${spec.values[i].map(number).join(", ")}`);
  const plot = svg("svg", {class: "map", height, role: "img", "aria-label": `${spec.title}, steps ${spec.steps.join(", ")}. ${lines.join("; ")}`});
  const read = (i, k) => { where.textContent = `${spec.rows[i]}, step ${spec.steps[k]}`; value.textContent = number(spec.values[i][k]); };

  function draw() {
    const width = Math.max(220, plot.clientWidth || 340), wide = (width - LEFT - RIGHT) / spec.steps.length;
    plot.setAttribute("viewBox", `0 0 ${width} ${height}`);
    plot.replaceChildren();
    const rare = Math.ceil(13 / high), some = Math.ceil(36 / wide);
    spec.rows.forEach((name, i) => {
      const y = TOP + (count - 1 - i) * high;
      if (i % rare === 0) plot.append(svg("text", {x: LEFT - 6, y: y + high / 2 + 4, "text-anchor": "end"}, spec.marks[i]));
      spec.values[i].forEach((v, k) => {
        const d = v === null ? null : depth(v), box = {x: LEFT + k * wide, y, width: Math.max(1, wide - 1), height: high - 1};
        const one = svg("rect", d === null ? {...box, class: "unknown"} : {...box, class: "area " + (d < 0 ? down : up)[0], "fill-opacity": (0.06 + 0.94 * Math.abs(d)).toFixed(3)});
        one.append(svg("title", {}, `${name}, step ${spec.steps[k]}: ${number(v)}`));
        one.addEventListener("pointerenter", () => read(i, k));
        plot.append(one);
      });
    });
    spec.steps.forEach((step, k) => {
      if (k % some === 0) plot.append(svg("text", {x: LEFT + (k + 0.5) * wide, y: height - 4, "text-anchor": "middle"}, step));
    });
  }
  plot.addEventListener("pointerleave", () => { where.textContent = value.textContent = ""; });
  new ResizeObserver(draw).observe(plot);
  return el("figure", {class: "chart"}, el("figcaption", {}, el("h3", {}, spec.title), where, el("p", {class: "hint"}, spec.hint)), legend, plot);
}
