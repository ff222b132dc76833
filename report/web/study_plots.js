// Plots of a study: IQ against EQ, curves of all methods in one chart, and intervals as bars.
// Whatever has data-method is lit while its method is pointed at, in all plots and tables at once.

const HIGH = 430, WIDE = 260;

function look(method) {  // six colours, then the same six dashed, then dotted; the base is grey
  const i = DATA.methods.indexOf(method);
  return i < 1 ? "c0 d0" : `c${1 + (i - 1) % 6} d${Math.floor((i - 1) / 6) % 3}`;
}

function light(method) {
  for (const node of document.querySelectorAll("[data-method]"))
    node.classList.toggle("faded", method !== null && node.dataset.method !== method);
}

function lit(node, method) {  // pointing at or focusing it lights its method
  node.dataset.method = method;
  for (const kind of ["pointerenter", "focus"]) node.addEventListener(kind, () => light(method));
  for (const kind of ["pointerleave", "blur"]) node.addEventListener(kind, () => light(null));
  return node;
}

const ranged = ([, lo, hi]) => lo === null ? "" : `[${number(lo)}, ${number(hi)}]`;

function span(values, pad) {  // from, to and unit of an axis around the values
  let lo = Math.min(...values), hi = Math.max(...values);
  const room = (hi - lo || Math.abs(hi) || 1) * pad;
  lo -= room; hi += room;
  return [lo, hi, tick(lo, hi, 6)];
}

const LOOKS = ["fill", "stroke", "stroke-width", "stroke-dasharray", "stroke-linejoin", "opacity", "font-family", "font-size", "font-weight", "text-anchor"];

function saveButton(plot, name) {  // the plot as a file: what the page's style says is written into it, and who is who below it
  const button = el("button", {type: "button", class: "save"}, "save as SVG");
  button.addEventListener("click", () => {
    const drawn = [plot, ...plot.querySelectorAll("*")], copy = plot.cloneNode(true), {width, height} = plot.viewBox.baseVal;
    [copy, ...copy.querySelectorAll("*")].forEach((node, i) => {
      for (const look of LOOKS) node.setAttribute(look, getComputedStyle(drawn[i]).getPropertyValue(look));
    });
    copy.querySelector(".cross")?.remove();
    const means = [...copy.querySelectorAll(".mean")], column = 210, columns = Math.floor(width / column), high = height + 18 * Math.ceil(means.length / columns);
    means.forEach((mean, i) => {
      const x = 46 + column * (i % columns), y = height + 8 + 18 * Math.floor(i / columns), looks = ["stroke", "stroke-width", "stroke-dasharray"].map(look => [look, mean.getAttribute(look)]);
      copy.append(svg("line", {x1: x, x2: x + 28, y1: y, y2: y, ...Object.fromEntries(looks)}),
        svg("text", {x: x + 34, y: y + 4, "font-size": 12, "font-family": "sans-serif", fill: getComputedStyle(plot).color}, mean.parentNode.dataset.method));
    });
    copy.setAttribute("viewBox", `0 0 ${width} ${high}`);
    copy.prepend(svg("rect", {width, height: high, fill: getComputedStyle(plot.closest("figure")).backgroundColor}));
    el("a", {download: `${name}.svg`, href: "data:image/svg+xml," + encodeURIComponent(new XMLSerializer().serializeToString(copy))}).click();
  });
  return button;
}

function pareto(arm) {
  const of = name => Object.fromEntries((arm.measures.find(m => m.name === name)?.rows ?? []).map(row => [row.method, row]));
  const iq = of("iq"), eq = of("eq");
  const points = Object.keys(iq).filter(m => eq[m] && iq[m].mean[0] !== null && eq[m].mean[0] !== null)
    .map(m => ({method: m, x: iq[m].mean, y: eq[m].mean, seeds: pairsOf(iq[m].seeds, eq[m].seeds)}));
  const plot = svg("svg", {class: "pareto", role: "img", "aria-label": "IQ against EQ: " + points.map(p => `${p.method} ${number(p.x[0])} % and ${number(p.y[0])}`).join(", ")});
  const figure = el("figure", {class: "wide"}, el("figcaption", {}, el("h3", {}, "IQ and EQ"),
    el("p", {class: "hint"}, "mean over seeds and prompts with its interval; small dots are seeds; the line joins the methods that none beats in both")), plot);
  if (!points.length) { figure.append(el("p", {class: "none"}, "no finished run")); return figure; }
  figure.append(saveButton(plot, "iq-eq"));

  function draw() {
    const width = Math.max(320, plot.clientWidth || 900), left = 52, bottom = 40, right = 16, top = 12;
    const known = list => list.filter(v => v !== null);
    const [x0, x1, xu] = span(points.flatMap(p => known([...p.x, ...p.seeds.map(s => s[0])])), 0.06);
    const [y0, y1, yu] = span(points.flatMap(p => known([...p.y, ...p.seeds.map(s => s[1])])), 0.06);
    const x = v => left + (v - x0) / (x1 - x0) * (width - left - right), y = v => top + (y1 - v) / (y1 - y0) * (HIGH - top - bottom);
    plot.setAttribute("viewBox", `0 0 ${width} ${HIGH}`);
    plot.replaceChildren();
    for (const t of ticks(x0, x1, xu)) plot.append(svg("line", {class: "rule", x1: x(t), x2: x(t), y1: top, y2: HIGH - bottom}),
      svg("text", {x: x(t), y: HIGH - bottom + 16, "text-anchor": "middle"}, number(t)));
    for (const t of ticks(y0, y1, yu)) plot.append(svg("line", {class: "rule", x1: left, x2: width - right, y1: y(t), y2: y(t)}),
      svg("text", {x: left - 7, y: y(t) + 4, "text-anchor": "end"}, number(t)));
    plot.append(svg("text", {x: (left + width - right) / 2, y: HIGH - 6, "text-anchor": "middle"}, "IQ: answers right as heard, %"),
      svg("text", {x: -(top + HIGH - bottom) / 2, y: 13, "text-anchor": "middle", transform: "rotate(-90)"}, "EQ: acoustic score"));
    const front = points.filter(p => arm.front.includes(p.method)).sort((a, b) => a.x[0] - b.x[0]);
    plot.append(svg("path", {class: "front", d: front.map((p, i) => `${i ? "L" : "M"}${x(p.x[0])} ${y(p.y[0])}`).join("")}));
    const taken = points.map(p => [x(p.x[0]) - 6, y(p.y[0]) - 6, 12, 12]);
    for (const p of points) {
      const cx = x(p.x[0]), cy = y(p.y[0]), [tx, ty, anchor] = place(cx, cy, p.method, taken, width - right, HIGH - bottom);
      const bars = [];
      if (p.x[1] !== null) bars.push(`M${x(p.x[1])} ${cy}H${x(p.x[2])}`);
      if (p.y[1] !== null) bars.push(`M${cx} ${y(p.y[1])}V${y(p.y[2])}`);
      const told = `${p.method}: IQ ${number(p.x[0])} ${ranged(p.x)} %, EQ ${number(p.y[0])} ${ranged(p.y)}`;
      plot.append(lit(svg("g", {class: look(p.method), tabindex: 0, role: "img", "aria-label": told}, svg("title", {}, told),
        svg("path", {class: "bar", d: bars.join("")}),
        ...p.seeds.map(([a, b]) => svg("circle", {class: "seed", cx: x(a), cy: y(b), r: 2.4})),
        svg("circle", {class: "point", cx, cy, r: p.method === DATA.baseline ? 6.5 : 5}),
        svg("text", {class: "name", x: tx, y: ty, "text-anchor": anchor}, p.method)), p.method));
    }
  }
  new ResizeObserver(draw).observe(plot);
  return figure;
}

function pairsOf(xs, ys) {  // [seed, value] lists -> [x, y] of the seeds that have both
  const other = Object.fromEntries(ys);
  return xs.filter(([seed, v]) => v !== null && (other[seed] ?? null) !== null).map(([seed, v]) => [v, other[seed]]);
}

function place(cx, cy, text, taken, right, bottom) {  // the first spot around a point that is free, or the least covered
  const w = 7 * text.length, spots = [[9, -7, "start"], [-9, -7, "end"], [9, 16, "start"], [-9, 16, "end"],
    [14, -22, "start"], [-14, -22, "end"], [14, 30, "start"], [-14, 30, "end"]];
  let best = null, least = Infinity;
  for (const [dx, dy, anchor] of spots) {
    const left = cx + dx - (anchor === "end" ? w : anchor === "middle" ? w / 2 : 0), box = [left, cy + dy - 11, w, 14];
    let cover = left < 48 || left + w > right || box[1] < 0 || cy + dy > bottom ? 1e4 : 0;
    for (const [a, b, c, d] of taken)
      cover += Math.max(0, Math.min(left + w, a + c) - Math.max(left, a)) * Math.max(0, Math.min(box[1] + 14, b + d) - Math.max(box[1], b));
    if (cover < least) { least = cover; best = [[cx + dx, cy + dy, anchor], box]; }
    if (!cover) break;
  }
  taken.push(best[1]);
  return best[0];
}

function overlay(curve) {
  const names = curve.lines.map(one => el("b", {}));
  const buttons = curve.lines.map((one, i) => lit(el("button", {type: "button", class: "key " + look(one.look ?? one.method)},
    el("i", {}), one.method + " ", names[i]), one.method));
  const where = el("span", {class: "where"}), plot = svg("svg", {class: "overlay", tabindex: 0, role: "slider", "aria-label": curve.title,
    "aria-valuemin": 0, "aria-valuemax": Math.max(0, curve.xs.length - 1)});
  const figure = el("figure", {class: "wide"}, el("figcaption", {}, el("h3", {}, curve.title), where, el("p", {class: "hint"}, curve.hint + "; thin lines are seeds")),
    el("p", {class: "keys"}, ...buttons), plot);
  if (!curve.lines.length) { figure.append(el("p", {class: "none"}, "not logged")); return figure; }
  figure.append(saveButton(plot, curve.title.toLowerCase()));
  let at = curve.xs.length - 1, x = () => 0, cross = null;

  function show(i) {
    at = i;
    curve.lines.forEach((one, k) => { names[k].textContent = number(one.mean[i]); });
    where.textContent = "step " + number(curve.xs[i]);
    plot.setAttribute("aria-valuenow", i);
    plot.setAttribute("aria-valuetext", where.textContent + ": " + curve.lines.map((one, k) => one.method + " " + names[k].textContent).join(", "));
    cross?.setAttribute("transform", `translate(${x(curve.xs[i])} 0)`);
  }

  function draw() {
    const width = Math.max(300, plot.clientWidth || 700), high = 260, left = 46, right = 10, n = curve.xs.length;
    const all = curve.lines.flatMap(one => [one.mean, ...one.seeds].flat()).filter(v => v !== null);
    let lo = Math.min(...all), hi = Math.max(...all);
    if (curve.name === "lambda") lo = Math.min(0, lo);
    if (lo === hi) { lo -= 0.5; hi += 0.5; }
    const unit = tick(lo, hi, 4), from = curve.xs[0], to = n > 1 ? curve.xs[n - 1] : from + 1;
    lo = Math.floor(lo / unit + 1e-9) * unit; hi = Math.ceil(hi / unit - 1e-9) * unit;
    x = v => left + (v - from) / (to - from) * (width - left - right);
    const y = v => 10 + (hi - v) / (hi - lo) * (high - 34);
    plot.setAttribute("viewBox", `0 0 ${width} ${high}`);
    plot.replaceChildren();
    for (const t of ticks(lo, hi, unit)) plot.append(svg("line", {class: "rule", x1: left, x2: width - right, y1: y(t), y2: y(t)}),
      svg("text", {x: left - 6, y: y(t) + 4, "text-anchor": "end"}, number(t)));
    for (const t of ticks(from, to, tick(from, to, 8)).filter(Number.isInteger)) plot.append(svg("text", {x: x(t), y: high - 6, "text-anchor": "middle"}, number(t)));
    const path = ys => ys.map((v, i) => v === null ? "" : `${i && ys[i - 1] !== null ? "L" : "M"}${x(curve.xs[i]).toFixed(1)} ${y(v).toFixed(1)}`).join("");
    for (const one of curve.lines) {
      const group = svg("g", {class: look(one.look ?? one.method)}, ...(one.seeds.length > 1 ? one.seeds.map(ys => svg("path", {class: "thread", d: path(ys)})) : []),
        svg("path", {class: "mean" + (one.method === DATA.baseline ? " strong" : ""), d: path(one.mean)}));
      group.dataset.method = one.method;
      plot.append(group);
    }
    cross = svg("line", {class: "cross", x1: 0, x2: 0, y1: 8, y2: high - 24});
    plot.append(cross);
    show(at);
  }
  plot.addEventListener("pointermove", e => {
    const box = plot.getBoundingClientRect(), a = x(curve.xs[0]), b = x(curve.xs.at(-1));
    const value = b > a ? curve.xs[0] + (e.clientX - box.left - a) / (b - a) * (curve.xs.at(-1) - curve.xs[0]) : curve.xs[0];
    show(nearest(curve.xs, value));
  });
  plot.addEventListener("pointerleave", () => show(curve.xs.length - 1));
  plot.addEventListener("keydown", e => arrows(e, at, curve.xs.length, show));
  new ResizeObserver(draw).observe(plot);
  return figure;
}

function interval(three, scale, seeds, method, zero) {  // one bar of a column of intervals on a common scale
  const [value, lo, hi] = three, x = v => 8 + (v - scale[0]) / (scale[1] - scale[0]) * (WIDE - 16);
  const parts = zero ? [svg("line", {class: "rule zero", x1: x(0), x2: x(0), y1: 0, y2: 22})] : [];
  if (value !== null) {
    if (lo !== null) parts.push(svg("path", {class: "bar", d: `M${x(lo)} 11H${x(hi)}`}));
    parts.push(...seeds.filter(([, v]) => v !== null).map(([, v]) => svg("circle", {class: "seed", cx: x(v), cy: 11, r: 2.2})), svg("circle", {class: "point", cx: x(value), cy: 11, r: 4}));
  }
  return svg("svg", {class: "interval " + look(method), viewBox: `0 0 ${WIDE} 22`, "aria-hidden": "true"}, ...parts);
}
