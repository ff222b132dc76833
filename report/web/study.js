// The page of a study, top to bottom.

const KEY_MEASURES = ["iq", "iq_text", "eq", "style", "wer", "distance", "reward"];
const FAULT_MEASURES = ["fault", "fault_duration", "fault_silence", "fault_loop", "fault_clipping", "unjudgeable", "truncated", "well_formed", "seconds"];
const NUM = {class: "num"};

const unitOf = measure => measure.unit === "points" ? "" : ` ${measure.unit}`;
const pvalue = p => p === null ? "–" : p < 0.001 ? "< 0.001" : p.toFixed(3);
const DECIMALS = {"%": 1, points: 2, bits: 3, s: 2};
const fixed = (measure, v) => v === null || v === undefined ? "–" : v.toFixed(DECIMALS[measure.unit]).replace("-", "−");
const gap = (measure, v) => v === null ? "–" : (v > 0 ? "+" : "") + fixed(measure, v);
const within = (measure, three, show = fixed) => three[1] === null ? "" : `[${show(measure, three[1])}, ${show(measure, three[2])}]`;
const goodness = row => row.verdict > 0 ? "good" : row.verdict < 0 ? "bad" : "";

function methodCell(name) {
  const cell = lit(el("th", {scope: "row", class: "method " + look(name), title: DATA.made_of[name] ?? ""}, el("i", {}), name), name);
  if (name === DATA.baseline) cell.append(el("small", {}, "held against"));
  if (name === "base") cell.append(el("small", {}, "not trained"));
  return cell;
}

function figureCell(measure, row) {
  if (!row || row.mean[0] === null) return el("td", NUM, "–");
  const cell = el("td", NUM, fixed(measure, row.mean[0]), el("small", {}, within(measure, row.mean)));
  if (row.diff) cell.append(el("small", {class: goodness(row)}, `${gap(measure, row.diff[0])} ${within(measure, row.diff, gap)}`));
  return cell;
}

function overview(arm, names, extra) {
  const measures = names.map(name => arm.measures.find(m => m.name === name)).filter(Boolean);
  const heads = [[":method"], ...measures.map(m => [m.label, m.unit, m.meaning]), ...extra.map(([head, , unit]) => [head, unit])];
  const rows = arm.methods.map(method => el("tr", {}, methodCell(method.name),
    ...measures.map(m => figureCell(m, m.rows.find(row => row.method === method.name))), ...extra.map(([, of]) => el("td", NUM, ...of(method)))));
  return wide("figures of all methods", heads, rows);
}

const wide = (label, heads, body) => tabled(label, heads, body, "sideways", "figures study");

const EXTRA = [
  ["lambda", method => [number(method.lambda), el("small", {}, method.lambda_seeds.length > 1 ? `${number(Math.min(...method.lambda_seeds))} to ${number(Math.max(...method.lambda_seeds))}` : "")], "mean over steps; seeds from, to"],
  ["lambda, last", method => [number(method.lambda_last)], "mean over seeds"],
  ["training", method => [number(method.minutes)], "minutes"],
  ["tokens sampled", method => [number(method.sampled)], "mean over seeds"],
  ["tokens trained on", method => [number(method.trained)], "mean over seeds"],
];

function whyTable(arm) {
  const heads = [[":method"], ...arm.why.figures.map(f => [f.name.replaceAll("_", " "), "", f.meaning])];
  const rows = arm.why.rows.filter(row => row.values.some(v => v !== null)).map(row => el("tr", {}, methodCell(row.method), ...row.values.map(v => el("td", NUM, v === null ? "" : number(v)))));
  return [wide("diagnostics of all methods", heads, rows),
    el("dl", {class: "meanings"}, ...arm.why.figures.flatMap(f => [el("dt", {}, f.name.replaceAll("_", " ")), el("dd", {}, f.meaning)]))];
}

function forest(arm) {
  const box = el("div", {}), choice = el("select", {name: "measure", "aria-label": "measure"}, ...arm.measures.map(m => el("option", {value: m.name}, m.label)));
  function draw() {
    const measure = arm.measures.find(m => m.name === choice.value), known = list => list.filter(v => v !== null && v !== undefined);
    const means = span(known(measure.rows.flatMap(row => [...row.mean, ...row.seeds.map(s => s[1])])), 0.04);
    const gaps = span([0, ...known(measure.rows.flatMap(row => row.diff ?? []))], 0.04);
    const heads = [":method", `:${measure.label}${unitOf(measure)}`, "mean", `:difference to ${DATA.baseline}`, "", "won, lost, tied", "sign test p", "prompts", "seeds"];
    const rows = measure.rows.map(row => el("tr", {}, methodCell(row.method), el("td", {}, interval(row.mean, means, row.seeds, row.method, false)),
      el("td", NUM, fixed(measure, row.mean[0]), el("small", {}, within(measure, row.mean))),
      el("td", {}, row.diff ? interval(row.diff, gaps, [], row.method, true) : ""),
      el("td", {class: "num " + goodness(row)}, row.diff ? gap(measure, row.diff[0]) : "", el("small", {}, row.diff ? within(measure, row.diff, gap) : "")),
      el("td", NUM, row.signs ? row.signs.join(", ") : ""), el("td", NUM, row.signs ? pvalue(row.p) : ""), el("td", NUM, row.prompts), el("td", NUM, row.seeds.length)));
    const better = ["less is better", "neither is better", "more is better"][measure.better + 1];
    box.replaceChildren(el("p", {class: "hint"}, `${measure.meaning}; ${better}`), wide(measure.label, heads.map(head => [head]), rows));
  }
  choice.addEventListener("change", draw);
  draw();
  return [el("p", {class: "controls"}, el("label", {}, "measure ", choice)), box];
}

function everyArm() {  // the arms side by side: what a change does to the same methods
  const others = DATA.arms.slice(1), wanted = new Set(others.flatMap(arm => arm.methods.map(m => m.name)));
  const rows = DATA.arms.flatMap(arm => arm.methods.filter(m => wanted.has(m.name) && m.name !== "base").map((method, i) => {
    const cells = ["iq", "eq", "reward"].map(name => { const m = arm.measures.find(one => one.name === name); return figureCell(m, m.rows.find(row => row.method === method.name)); });
    return el("tr", {class: i ? "" : "first"}, el("th", {scope: "row"}, i ? "" : arm.name, i || !arm.changes ? "" : el("small", {}, arm.changes)), methodCell(method.name), ...EXTRA.slice(0, 2).map(([, of]) => el("td", NUM, ...of(method))), ...cells);
  }));
  const heads = [":arm", ":method", "lambda, mean over steps", "lambda, last", "IQ, as heard, %", "EQ", "reward"];
  const table = wide("arms", heads.map(head => [head]), rows);
  const xs = DATA.arms[0].curves[0].xs, alike = DATA.arms.filter(arm => String(arm.curves[0].xs) === String(xs));
  const lines = alike.flatMap((arm, k) => arm.curves[0].lines.filter(one => wanted.has(one.method)).map(one => ({...one, method: `${arm.name} · ${one.method}`})));
  lines.forEach((one, i) => { one.look = DATA.methods[1 + i % Math.max(1, DATA.methods.length - 1)]; });
  return [table, el("div", {class: "grid two"}, overlay({...DATA.arms[0].curves[0], title: "Lambda in every arm", lines}))];
}

function cellTable() {
  const minutes = s => s === null || s === undefined ? "–" : number(s / 60), heads = [":cell", ":arm", ":method", "seed", ":state", "steps", "on the clock, min", "training, min", "evaluation, min", "tokens sampled", "tokens trained on", ":commit"];
  const rows = DATA.cells.map(c => el("tr", {class: c.state === "finished" ? "" : "absent"}, el("th", {scope: "row"}, c.name), el("td", {}, c.arm), el("td", {}, c.method), el("td", NUM, c.seed),
    el("td", {}, c.state, c.detail ? el("small", {}, c.detail) : ""), el("td", NUM, c.steps ?? "–"), el("td", NUM, minutes(c.wall_s)), el("td", NUM, minutes(c.train_s)), el("td", NUM, minutes(c.evaluation_s)),
    el("td", NUM, number(c.sampled)), el("td", NUM, number(c.trained)), el("td", {}, c.commit ?? "")));
  return wide("cells", heads.map(head => [head]), rows);
}

function meanings() {
  const first = DATA.arms[0]?.measures ?? [];
  return [el("dl", {class: "meanings"}, ...first.flatMap(m => [el("dt", {}, m.label), el("dd", {}, m.meaning)])),
    el("p", {class: "plain"}, "Intervals: prompts and seeds are drawn again with replacement, the same draws for every method; a difference uses the same prompt and seed on both sides. Intervals of few seeds are widened, by Student's t with the degrees of freedom that seeds and prompts leave. Green or red: the interval of the difference leaves 0 out and the difference has the same sign in every seed. The sign test takes, per prompt, the mean over seeds, and leaves ties out. Neither is corrected for the number of comparisons on this page.")];
}

const main = DATA.arms[0];
document.title = DATA.head.name + " · WavGate study";
const parts = main ? [
  section("methods", "Methods", [], overview(main, KEY_MEASURES, EXTRA), el("p", {class: "hint"}, `mean over seeds and prompts, its interval, and the difference to ${DATA.baseline} with its interval`)),
  section("pareto", "IQ against EQ", [], pareto(main)),
  section("faults", "Faults of the sound and the form", [], overview(main, FAULT_MEASURES, [])),
  ...(main.why.figures.length ? [section("why", "Why", [], el("p", {class: "hint"}, "means over seeds; empty: the run's files do not tell"), ...whyTable(main))] : []),
  section("measures", "One measure at a time", [], ...forest(main)),
  section("curves", "Curves", [], el("div", {class: "grid two"}, ...main.curves.map(overlay))),
  ...(DATA.arms.length > 1 ? [section("arms", "Arms", [], ...everyArm())] : []),
] : [section("methods", "Methods", [], el("p", {class: "none"}, "no finished run yet"))];
parts.push(section("cells", "Cells", [], cellTable()), section("meanings", "What the figures mean", [], ...meanings()));
const anchors = parts.map(s => el("a", {href: "#" + s.id}, s.getAttribute("aria-label")));
document.body.append(heading(DATA.head), el("nav", {"aria-label": "sections"}, ...anchors), el("main", {}, ...parts));
document.documentElement.dataset.readyMs = Math.round(performance.now());
