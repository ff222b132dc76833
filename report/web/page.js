// The page of a run, top to bottom.

function comparison(table) {
  if (!table.rows.length) return [el("p", {class: "none"}, "no held-out test figures")];
  const heads = table.heads.map((head, i) => el("th", {scope: "col"}, ["before", "after"][i],
    head ? el("small", {}, `${head[0]}, ${head[1]} prompts`) : el("small", {}, "none")));
  return [el("table", {class: "compare"},
    el("thead", {}, el("tr", {}, el("td", {}), ...heads, el("th", {scope: "col"}, "change"))),
    el("tbody", {}, ...table.rows.map(([label, before, after, change, better]) => el("tr", {class: label.startsWith(" ") ? "task" : ""},
      el("th", {scope: "row"}, label.trim()), el("td", {}, before), el("td", {}, after),
      el("td", {class: better > 0 ? "good" : better < 0 ? "bad" : ""}, change)))))];
}

function happenings(events) {
  if (!events.rows.length) return [el("p", {class: "none"}, "no events")];
  const counts = el("p", {class: "legend"}, ...events.counts.map(([kind, count]) => el("span", {class: "chip"}, kind + " ", el("b", {}, count))));
  const rows = events.rows.map(e => el("tr", {}, el("td", {class: "num"}, e.time), el("td", {class: "num"}, e.step ?? ""), el("td", {}, e.kind),
    el("td", {class: "num"}, e.count), el("td", {}, e.detail, e.more ? el("small", {}, e.more) : "")));
  return [counts, el("div", {class: "scroll", tabindex: 0, role: "region", "aria-label": "list of events"}, el("table", {class: "plain"},
    el("thead", {}, el("tr", {}, ...["time (UTC)", "step", "kind", "count", "detail"].map(t => el("th", {scope: "col"}, t)))), el("tbody", {}, ...rows)))];
}

const { head, table, curves, diagnostics, judges, histograms, rollouts, samples, events } = DATA;
document.title = head.name + " · WavGate";
const more = curves.more.length ? [fold(`${curves.more.length} more metrics`, el("div", {class: "grid"}, ...curves.more.map(c => chart(c, "step"))))] : [];
const sections = [
  section("compare", "Before and after", table.notes, ...comparison(table)),
  section("curves", "Curves", curves.notes, el("div", {class: "grid"}, ...curves.panels.map(c => chart(c, "step"))), ...more),
  section("diagnostics", "Diagnostics", diagnostics.notes, ...diagnosing(diagnostics)),
  section("judges", "Judges", judges.notes, ...judging(judges)),
  section("histograms", "Scores, early and late", histograms.notes, histograms.axes.length
    ? el("div", {class: "grid"}, ...histograms.axes.map(h => histogram(h, histograms.spans))) : el("p", {class: "none"}, "no scores")),
  section("rollouts", "Rollouts", rollouts.notes, ...browse(rollouts)),
  section("samples", "Held-out replies, before and after", samples.notes, ...(samples.pairs.length ? listening(samples) : [el("p", {class: "none"}, "no samples")])),
  section("events", "Events", events.notes, ...happenings(events)),
];
const links = sections.map(s => el("a", {href: "#" + s.id}, s.getAttribute("aria-label")));
document.body.append(heading(head), el("nav", {"aria-label": "sections"}, ...links), el("main", {}, ...sections));
document.documentElement.dataset.readyMs = Math.round(performance.now());
