// Charts: lines, stacked bars and histograms as SVG. A null is a gap. Pointer and arrow keys move one
// cursor; charts of the same group share it and their legends read out the values under it.

const HEIGHT = 150, LEFT = 46, RIGHT = 10, TOP = 8, BOTTOM = 20;
const cursors = {};  // group -> functions that show x, or the last values when x is null

function number(v) {
  if (v === null || v === undefined) return "–";
  const size = Math.abs(v);
  if (size === 0) return "0";
  if (size >= 10000) return Math.round(v).toLocaleString("en");
  if (size < 0.001) return v.toExponential(1);
  return String(Number(v.toPrecision(3)));
}

function tick(lo, hi, most) {
  const rough = (hi - lo) / most, power = 10 ** Math.floor(Math.log10(rough));
  return [1, 2, 5, 10].find(m => m * power >= rough * 0.999) * power;
}

function ticks(lo, hi, unit) {
  const found = [];
  for (let n = Math.ceil(lo / unit - 1e-9); n * unit <= hi + unit * 1e-9; n++) found.push(n * unit);
  return found;
}

function reach(spec) {  // the y axis: from, to, unit; both ends are ticks
  let values = spec.series.flatMap(s => s.ys).filter(y => y !== null);
  if (spec.kind === "stack") {
    const sums = spec.xs.map((_, i) => layers(spec).reduce((sum, s) => sum + Math.max(0, s.ys[i] ?? 0), 0));
    values = values.concat(sums);
  }
  let lo = Math.min(...values), hi = Math.max(...values);
  if (spec.zero) { lo = Math.min(0, lo); hi = Math.max(0, hi); }
  if (lo === hi) { lo -= lo === 0 ? 0 : Math.abs(lo) / 2; hi += hi === 0 ? 1 : Math.abs(hi) / 2; }
  const unit = tick(lo, hi, 3);
  return [Math.floor(lo / unit + 1e-9) * unit, Math.ceil(hi / unit - 1e-9) * unit, unit];
}

const layers = spec => spec.series.filter(s => s.look !== "cl");

function chart(spec, group) {
  const values = spec.series.map(s => el("b", {}));
  const legend = el("p", {class: "legend"}, ...spec.series.map((s, i) =>
    el("span", {class: s.look, title: s.name}, el("i", {}), s.label + " ", values[i])));
  const where = el("span", {class: "where"});
  const head = el("figcaption", {}, el("h3", {}, spec.title), where, spec.hint ? el("p", {class: "hint"}, spec.hint) : "");
  const figure = el("figure", {class: "chart"}, head);
  if (!spec.series.length || !spec.xs.length) {
    figure.append(el("p", {class: "none"}, "no data" + (spec.absent.length ? ": " + spec.absent.join(", ") : " yet")));
    return figure;
  }
  const plot = svg("svg", {class: "plot", tabindex: 0, role: "slider", "aria-label": spec.title, "aria-valuemin": 0,
    "aria-valuemax": spec.xs.length - 1});
  figure.append(legend, plot);
  if (spec.absent.length) figure.append(el("p", {class: "hint"}, "not logged: " + spec.absent.join(", ")));
  let at = spec.xs.length - 1, x = () => 0, cross = null;
  const name = i => spec.names ? spec.names[i] : "step " + number(spec.xs[i]);

  function show(value) {  // nearest x, or the last one
    at = value === null ? spec.xs.length - 1 : nearest(spec.xs, value);
    const resting = value === null && (spec.kind === "bars" || spec.names);  // neither bins nor layers have a last value
    values.forEach((b, i) => { b.textContent = resting ? "" : (spec.format ?? number)(spec.series[i].ys[at]); });
    where.textContent = resting ? "" : name(at);
    plot.setAttribute("aria-valuenow", at);
    plot.setAttribute("aria-valuetext", name(at) + ": " + spec.series.map((s, i) => s.label + " " + values[i].textContent).join(", "));
    if (cross) {
      cross.setAttribute("transform", `translate(${x(spec.xs[at])} 0)`);
      cross.setAttribute("class", value === null ? "cross off" : "cross");
    }
  }
  const everyone = cursors[group] ??= [];
  everyone.push(show);
  const move = value => everyone.forEach(one => one(value));

  function draw() {
    const width = Math.max(220, plot.clientWidth || 340), [lo, hi, unit] = reach(spec), n = spec.xs.length;
    const step = n > 1 ? (spec.xs[n - 1] - spec.xs[0]) / (n - 1) : 1;
    const pad = spec.kind === "line" && !spec.marks ? (n > 1 ? 0 : 0.5) : step / 2;
    const from = spec.xs[0] - pad, to = spec.xs[n - 1] + pad;
    x = v => LEFT + (v - from) / (to - from) * (width - LEFT - RIGHT);
    const y = v => TOP + (hi - v) / (hi - lo) * (HEIGHT - TOP - BOTTOM);
    plot.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    plot.replaceChildren();
    for (const t of ticks(lo, hi, unit)) plot.append(
      svg("line", {class: "rule", x1: LEFT, x2: width - RIGHT, y1: y(t), y2: y(t)}),
      svg("text", {x: LEFT - 6, y: y(t) + 3.5, "text-anchor": "end"}, (spec.format ?? number)(t)));
    const whole = spec.kind !== "bars";  // steps are whole numbers
    if (spec.marks) spec.marks.forEach((mark, i) => plot.append(svg("text", {x: x(spec.xs[i]), y: HEIGHT - 4, "text-anchor": "middle"}, mark)));
    else for (const t of ticks(from, to, tick(from, to, Math.min(6, width / 60))).filter(t => !whole || Number.isInteger(t))) plot.append(
      svg("text", {x: Math.min(x(t), width - 16), y: HEIGHT - 4, "text-anchor": "middle"}, number(t)));
    const bar = Math.max(1, Math.abs(x(step) - x(0)) * (n > 1 ? 0.84 : 0.1));
    if (spec.kind === "stack") stack(spec, plot, x, y, bar);
    else if (spec.kind === "bars") bars(spec, plot, x, y, bar);
    else for (const s of spec.series) line(s, spec.xs, plot, x, y);
    if (spec.rule >= lo && spec.rule <= hi) plot.append(svg("line", {class: "limit", x1: LEFT, x2: width - RIGHT, y1: y(spec.rule), y2: y(spec.rule)}));
    cross = svg("line", {class: "cross off", y1: TOP, y2: HEIGHT - BOTTOM});
    plot.append(cross);
    show(null);
  }
  plot.addEventListener("pointermove", e => {
    const box = plot.getBoundingClientRect(), n = spec.xs.length, a = x(spec.xs[0]), b = x(spec.xs[n - 1]);
    move(n > 1 ? spec.xs[0] + (e.clientX - box.left - a) / (b - a) * (spec.xs[n - 1] - spec.xs[0]) : spec.xs[0]);
  });
  plot.addEventListener("pointerleave", () => move(null));
  plot.addEventListener("focus", () => { if (plot.matches(":focus-visible")) move(spec.xs[at]); });
  plot.addEventListener("blur", () => move(null));
  plot.addEventListener("keydown", e => arrows(e, at, spec.xs.length, i => move(spec.xs[i])));
  new ResizeObserver(draw).observe(plot);
  return figure;
}

function arrows(event, at, count, go) {  // arrow keys, page keys, home and end move a cursor
  const by = {ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10, Home: -count, End: count}[event.key];
  if (by === undefined) return;
  event.preventDefault();
  go(Math.max(0, Math.min(count - 1, at + by)));
}

function nearest(xs, value) {
  let best = 0;
  for (let i = 1; i < xs.length; i++) if (Math.abs(xs[i] - value) < Math.abs(xs[best] - value)) best = i;
  return best;
}

function line(s, xs, plot, x, y) {
  let path = "", dots = "", open = false;
  s.ys.forEach((v, i) => {
    if (v === null) { open = false; return; }
    const alone = !open && (s.ys[i + 1] ?? null) === null;  // a point between gaps is a dot
    path += `${open ? "L" : "M"}${x(xs[i]).toFixed(1)} ${y(v).toFixed(1)}`;
    if (alone || xs.length <= 12) dots += `M${x(xs[i]).toFixed(1)} ${y(v).toFixed(1)}h0`;
    open = true;
  });
  plot.append(svg("path", {class: "line " + s.look, d: path, "data-metric": s.name}), svg("path", {class: "dots " + s.look, d: dots}));
}

function rectangle(left, top, width, height) {
  return `M${left.toFixed(1)} ${top.toFixed(1)}h${width.toFixed(1)}v${height.toFixed(1)}h${(-width).toFixed(1)}z`;
}

function stack(spec, plot, x, y, width) {
  const base = spec.xs.map(() => 0), parts = layers(spec);
  const whole = spec.xs.map((_, i) => parts.every(s => s.ys[i] !== null));  // a step with an unknown part is a gap
  for (const s of parts) {
    let path = "";
    s.ys.forEach((v, i) => {
      if (!whole[i] || v <= 0) return;  // negative rest: the phases overlap
      path += rectangle(x(spec.xs[i]) - width / 2, y(base[i] + v), width, y(base[i]) - y(base[i] + v));
      base[i] += v;
    });
    plot.append(svg("path", {class: "area " + s.look, d: path, "data-metric": s.name}));
  }
  for (const s of spec.series.filter(s => s.look === "cl")) line(s, spec.xs, plot, x, y);
}

function bars(spec, plot, x, y, width) {
  const each = width / spec.series.length;
  spec.series.forEach((s, k) => {
    const path = s.ys.map((v, i) => v ? rectangle(x(spec.xs[i]) - width / 2 + k * each, y(v), each, y(0) - y(v)) : "").join("");
    plot.append(svg("path", {class: "area " + s.look, d: path}));
  });
}

const percent = v => v === null || v === undefined ? "–" : Number((v * 100).toPrecision(v < 0.1 ? 2 : 3)) + "%";

function histogram(h, spans) {
  const sides = [0, 1].filter(i => h.counts[i]);
  const centres = h.edges.slice(1).map((edge, i) => (edge + h.edges[i]) / 2);
  const hint = sides.map(i => `${spans[i]}: mean ${number(h.means[i])}, ${h.counts[i]} replies` +
    (h.missing[i] ? `, ${h.missing[i]} without a score` : "")).join(" · ");
  return chart({title: h.axis, hint, kind: "bars", zero: true, xs: centres, absent: [], format: percent,
    names: centres.map((_, i) => `${number(h.edges[i])} to ${number(h.edges[i + 1])}`),
    series: sides.filter(i => h.shares[i].length).map(i => ({name: spans[i], label: ["early", "late"][i], look: ["c0", "c1"][i], ys: h.shares[i]}))},
    "histogram " + h.axis);
}
