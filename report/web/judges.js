// The judges of the run: what became of the verdicts, why some are missing, canaries, second judge, calls.

const FATES = {paid: ["PAID", "chip alarm"], passed: ["passed", "good"], unknown: ["not judged", "none"]};

function judging(judges) {
  const {canaries, missing, spans} = judges, paid = canaries.filter(c => c.fate === "paid");
  if (!judges.verdicts.length && !judges.panels.length && !judges.calls.length && !canaries.length)
    return [el("p", {class: "none"}, "no verdicts")];
  const unscored = judges.verdicts.length ? "No verdict is missing." : "No rollout records.";
  return [
    paid.length ? el("p", {class: "alarm"}, el("b", {}, "The judge pays for worthless replies: "),
      paid.map(c => `${c.axis} / ${c.name}`).join(", "), ". What is paid for will be learnt.") : "",
    overview(judges.facts),
    titled("Verdicts by axis and judge", judges.verdicts.length ? byJudge(judges.verdicts, spans) : null, "No rollout records."),
    el("div", {class: "grid"}, ...judges.panels.map(c => chart({...c, format: c.share ? percent : number}, "step")), ...byLength(judges.lengths, missing.count),
      ...judges.spreads.map(h => histogram({...h, axis: "Spread, " + h.axis}, spans))),
    titled("Missing verdicts", missing.rows.length ? byKind(missing) : null, unscored),
    titled("Canaries", canaries.length ? checks(canaries) : null,
      "No canaries were put to a judge: whether one pays for worthless replies is not known."),
    titled("Second judge", judges.second.length ? agreement(judges.second) : null, "No second judge was asked."),
    titled("Calls to endpoints", judges.calls.length ? calls(judges.calls) : null, "No calls are logged: no endpoint was asked."),
  ];
}

function overview(facts) {
  const seconds = v => number(v) + " s";
  const shown = [["verdicts", facts.verdicts || null, number], ["missing", facts.missing, percent], ["from the cache", facts.cached, percent],
    ["latency, p50", facts.p50, seconds], ["latency, p95", facts.p95, seconds], ["requests", facts.requests, number],
    ["spent", facts.spent, number], ["breaker open", facts.breaker_open_s, seconds]];
  return listed(shown.filter(([, value]) => value !== null).map(([name, value, format]) => [name, format(value)]));
}

const figures = (label, heads, body, hint) => el("div", {}, hint ? el("p", {class: "hint"}, hint) : "", tabled(label, heads, body));

// Fixed digits, so that a column can be read downwards.
const fixed = digits => value => value === null || value === undefined ? "–" : value.toFixed(digits);
const points = fixed(2), rate = value => value === null ? "–" : (value * 100).toFixed(1) + "%", timed = value => fixed(2)(value) + " s";

const cell = value => el("td", {class: "num"}, value);
const said = (...parts) => el("td", {class: "said"}, ...parts);  // a sentence or a long name
const term = part => el("td", {class: "term"}, part);

function byJudge(rows, spans) {
  const sizes = {};
  for (const row of rows) sizes[row.axis] = (sizes[row.axis] ?? 0) + 1;
  const seen = new Set();
  const body = rows.map(row => {
    const first = !seen.has(row.axis);
    seen.add(row.axis);
    const axis = first ? [el("th", {scope: "rowgroup", rowspan: sizes[row.axis]}, row.axis)] : [];
    const found = row.judge === null
      ? [said("no score"), cell(number(row.count)), cell(rate(row.share)), ...Array.from({length: 5}, () => cell(""))]
      : [said(row.judge), cell(number(row.count)), cell(rate(row.share)), cell(rate(row.cached)), cell(points(row.early)),
        cell(points(row.late)), cell(points(row.spread)), cell(fixed(3)(row.noise))];
    return el("tr", {class: (first ? "first " : "") + (row.judge !== null ? "" : row.count ? "absent" : "quiet")}, ...axis, ...found);
  });
  return figures("verdicts by axis and judge", [[":axis"], [":judge"], ["verdicts"], ["share"], ["cached"], ["mean", spans[0]], ["mean", spans[1]],
    ["spread", "mean"], ["noise", "mean spread²"]], body,
    "spread: deviation over a judge's own repeats, 0 where it is asked once or is a rule; noise: what a gate that corrects for noise subtracts");
}

function byLength(lengths, missing) {
  if (!missing || !lengths.labels.length) return [];
  return [chart({title: "Missing by length of audio", hint: "share of verdicts, by seconds of the reply" +
    (lengths.unknown ? `; ${lengths.unknown} replies of unknown length are left out` : ""),
    kind: "bars", zero: true, xs: lengths.labels.map((_, i) => i), marks: lengths.labels, absent: [], format: percent,
    names: lengths.labels.map((label, i) => `${label} s, ${lengths.counts[i]} replies`),
    series: lengths.axes.map((axis, i) => ({name: axis, label: axis, look: `c${1 + i % 5}`, ys: lengths.shares[i]}))}, "lengths")];
}

function byKind(missing) {
  const body = missing.rows.map(row => el("tr", {}, el("th", {scope: "row"}, row.kind), cell(number(row.count)), cell(rate(row.share)),
    ...row.counts.map(count => cell(count ? number(count) : "")), said(row.reason)));
  return figures("missing verdicts by kind", [[":kind"], ["missing"], ["of all verdicts"], ...missing.axes.map(axis => [axis]), [":most often"]], body);
}

function checks(canaries) {
  const body = canaries.map(c => el("tr", {class: c.fate === "paid" ? "paid" : ""},
    el("th", {scope: "row"}, c.name), term(c.axis), term(el("span", {class: FATES[c.fate][1]}, FATES[c.fate][0])), cell(points(c.value)),
    cell(points(c.most)), el("td", {class: c.paid ? "num bad" : "num"}, `${c.paid} of ${c.checks}`), el("td", {}, timeline(c)), said(c.fate === "passed" ? "" : c.detail)));
  return figures("canaries", [[":canary"], [":axis"], [":last check"], ["score"], ["at most"], ["paid"], [":checks"], [":detail"]], body,
    "replies that deserve nothing, put to the judge; a score above “at most” is pay");
}

function timeline(c) {  // a bar per check, as high as the score; the rule is the most that is not pay
  const top = Math.max(1, ...c.values.map(v => v ?? 0), c.most ?? 0), high = v => Math.max(2, v / top * 15);
  const bars = c.fates.map((fate, i) => {
    const height = c.values[i] === null ? 2 : high(c.values[i]);
    const bar = svg("rect", {class: "fate-" + fate, x: i * 7, y: 16 - height, width: 5, height});
    bar.append(svg("title", {}, `step ${c.steps[i]}: ${FATES[fate][0]} with ${points(c.values[i])}`));
    return bar;
  });
  const rule = c.most === null ? [] : [svg("line", {class: "limit", x1: 0, x2: bars.length * 7 - 2, y1: 16 - high(c.most), y2: 16 - high(c.most)})];
  return svg("svg", {class: "history", width: bars.length * 7 - 2, height: 16, role: "img",
    "aria-label": c.steps.map((step, i) => `step ${step} ${FATES[c.fates[i]][0]} ${points(c.values[i])}`).join(", ")}, ...bars, ...rule);
}

function agreement(rows) {
  const ranged = ([value, interval]) => el("td", {class: "num"}, points(value),
    interval ? el("small", {}, `${points(interval[0])} to ${points(interval[1])}`) : "");
  const tilt = value => value === null ? "–" : (value < 0 ? "−" : "+") + points(Math.abs(value));
  const body = rows.map(row => el("tr", {}, el("th", {scope: "row"}, row.axis,
    row.count ? el("small", {}, `${row.judges[0].join(", ")} against ${row.judges[1].join(", ")}`) : ""),
    cell(number(row.count)), cell(number(row.missing)), ranged(row.pearson), ranged(row.spearman), cell(points(row.mae)),
    cell(tilt(row.bias)), cell(rate(row.within_one))));
  return figures("agreement with the second judge", [[":axis"], ["replies", "scored by both"], ["missing", "of the second"],
    ["Pearson"], ["Spearman", "within a prompt"], ["MAE"], ["bias", "first − second"], ["within one"]], body,
    "a second opinion, never part of a reward; small figures: 95 % interval");
}

function calls(rows) {
  const body = rows.map(row => el("tr", {}, el("th", {scope: "row", class: "said"}, row.judge, row.judge.includes(row.model) ? "" : el("small", {}, row.model)), cell(number(row.count)),
    cell(timed(row.p50)), cell(timed(row.p95)), cell(points(row.attempts)), cell(rate(row.again)), cell(row.spent === null ? "–" : row.spent.toFixed(row.spent < 1 ? 4 : 2)),
    cell(rate(row.failed.reduce((sum, [, count]) => sum + count, 0) / row.count)),
    said(row.failed.map(([kind, count]) => `${kind}\u00a0${number(count)}`).join(", "))));
  return figures("calls to endpoints", [[":judge"], ["calls"], ["p50"], ["p95"], ["attempts", "mean"], ["tried again"], ["spent"], ["failed"], [":of which"]], body,
    "seconds of a whole call with its attempts, failed ones included; canaries and the second judge are calls too");
}
