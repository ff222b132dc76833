// One reply: player, words, scores, token strip; and the browser that shows a group of them side by side.

const CHANNELS = {T: "text", A: "audio", B: "boundary", E: "end of turn", P: "pad"};

const signed = v => v === null ? "–" : (v > 0 ? "+" : v < 0 ? "−" : "") + number(Math.abs(v));

function player(path, silent, label) {
  if (silent !== null || !DATA.audio[path]) return el("p", {class: "none"}, silent ?? "no audio");
  const audio = el("audio", {controls: "", preload: "metadata", src: DATA.audio[path], "aria-label": label});
  audio.addEventListener("play", () => document.querySelectorAll("audio").forEach(other => { if (other !== audio) other.pause(); }));
  return audio;
}

function words(label, list, tag) {  // words without a counterpart on the other side are marked
  const body = list === null ? [el("span", {class: "none"}, "not recognised")]
    : list.length ? list.flatMap(([word, odd]) => [odd ? el(tag, {}, word) : word, " "]) : [el("span", {class: "none"}, "nothing")];
  return el("p", {class: "words"}, el("span", {class: "tag"}, label), el("span", {}, ...body));
}

function strip(reply, audio, most) {
  const n = reply.channels.length, weights = (reply.weights ?? []).flatMap(([v, count]) => Array(count).fill(v));
  const runs = {}, up = [], down = [];
  for (let i = 0, j; i < n; i = j) {  // neighbours of one channel are one rectangle
    for (j = i; j < n && reply.channels[j] === reply.channels[i]; j++);
    runs[reply.channels[i]] = (runs[reply.channels[i]] ?? "") + `M${i} 0h${j - i}v16h${i - j}z`;
  }
  weights.forEach((v, i) => {
    if (v && most) (v > 0 ? up : down).push(`M${i} 30v${(-v / most * 11).toFixed(2)}h1V30z`);
  });
  const cursor = svg("rect", {class: "cursor off", x: 0, y: 0, width: 1, height: 42});
  const head = svg("rect", {class: "head off", x: 0, y: 0, width: 1, height: 42});
  const view = svg("svg", {class: "strip", viewBox: `0 0 ${Math.max(n, 1)} 42`, preserveAspectRatio: "none", tabindex: 0, role: "slider",
    "aria-label": "tokens of reply " + reply.index, "aria-valuemin": 0, "aria-valuemax": Math.max(0, n - 1)},
    ...Object.entries(runs).map(([channel, d]) => svg("path", {class: "ch-" + channel, d})),
    svg("line", {class: "rule", x1: 0, x2: n, y1: 30, y2: 30}),
    svg("path", {class: "up", d: up.join("")}), svg("path", {class: "down", d: down.join("")}), cursor, head);
  const counts = Object.keys(CHANNELS).filter(c => reply.channels.includes(c))
    .map(c => `${reply.channels.split(c).length - 1} ${CHANNELS[c]}`).join(", ");
  const rest = `${n} tokens: ${counts || "none"}` + (reply.weights === null ? "; no preference row" : `; |weight| up to ${number(heaviest([reply]))}`);
  const out = el("p", {class: "readout"}, rest);
  let at = 0;

  function show(i) {
    if (i === null || !n) { out.textContent = rest; cursor.setAttribute("class", "cursor off"); return; }
    at = i;
    const weight = reply.weights === null ? "none" : signed(weights[i]);
    out.textContent = `${i}: ${CHANNELS[reply.channels[i]]}, id ${reply.ids[i]}, log-prob ${number(reply.logps[i])}, mismatch ${number(reply.gaps[i])}, weight ${weight}`;
    cursor.setAttribute("x", i);
    cursor.setAttribute("class", "cursor");
    view.setAttribute("aria-valuenow", i);
    view.setAttribute("aria-valuetext", out.textContent);
  }
  view.addEventListener("pointermove", e => {
    const box = view.getBoundingClientRect();
    show(Math.max(0, Math.min(n - 1, Math.floor((e.clientX - box.left) / box.width * n))));
  });
  view.addEventListener("pointerleave", () => show(null));
  view.addEventListener("focus", () => { if (view.matches(":focus-visible")) show(at); });
  view.addEventListener("blur", () => show(null));
  view.addEventListener("keydown", e => arrows(e, at, n, show));
  if (audio instanceof HTMLAudioElement) follow(audio, reply, head);
  return el("div", {class: "tokens"}, view, out);
}

const heaviest = replies => Math.max(0, ...replies.flatMap(r => (r.weights ?? []).map(([v]) => Math.abs(v ?? 0))));

function follow(audio, reply, head) {  // the k-th of n AUDIO tokens sounds at k/n of the clip
  const spots = [...reply.channels].flatMap((c, i) => c === "A" ? [i] : []);
  const tick = () => {
    const share = audio.duration ? audio.currentTime / audio.duration : 0;
    if (spots.length) head.setAttribute("x", spots[Math.min(spots.length - 1, Math.floor(share * spots.length))]);
    head.setAttribute("class", spots.length && (audio.currentTime > 0 || !audio.paused) && !audio.ended ? "head" : "head off");
    if (!audio.paused && !audio.ended) requestAnimationFrame(tick);
  };
  for (const kind of ["play", "pause", "seeked", "ended"]) audio.addEventListener(kind, tick);
}

function scores(reply) {
  const rows = reply.scores.map(([axis, value, spread, judge, why]) => el("tr", {class: value === null ? "absent" : ""},
    el("th", {scope: "row"}, axis), el("td", {class: "num"}, value === null ? "missing" : number(value) + (spread ? " ± " + number(spread) : "")),
    el("td", {title: judge}, why || judge)));
  return el("table", {class: "scores"}, ...rows);
}

function card(reply, most) {  // most: the largest weight of the group, so that strips compare
  const audio = player(reply.audio, reply.silent, "reply " + reply.index);
  const tone = reply.advantage > 0 ? "good" : reply.advantage < 0 ? "bad" : "";
  const chips = [];
  if (reply.finish !== "stop") chips.push(el("span", {class: "chip warn"}, reply.finish === "length" ? "truncated" : "aborted"));
  if (reply.missing !== null) chips.push(el("span", {class: "chip warn"}, "no reward: " + reply.missing));
  if (reply.dropped !== null) chips.push(el("span", {class: "chip warn"}, "dropped: " + reply.dropped));
  return el("article", {class: "reply", "data-index": reply.index},
    el("header", {}, el("span", {class: "index"}, "#" + reply.index),
      el("span", {}, "reward ", el("b", {}, number(reply.reward))),
      el("span", {}, "advantage ", el("b", {class: tone}, signed(reply.advantage)))),
    chips.length ? el("p", {}, ...chips) : "", audio, words("text", reply.said, "del"), words("heard", reply.heard, "ins"), scores(reply), strip(reply, audio, most));
}

const ORDERS = {
  "advantage, high first": (a, b) => (b.advantage ?? -Infinity) - (a.advantage ?? -Infinity) || a.index - b.index,
  "advantage, low first": (a, b) => (a.advantage ?? Infinity) - (b.advantage ?? Infinity) || a.index - b.index,
  "reward, high first": (a, b) => (b.reward ?? -Infinity) - (a.reward ?? -Infinity) || a.index - b.index,
  "as sampled": (a, b) => a.index - b.index,
};

function asked(item) {
  return el("p", {class: "asked"}, el("q", {}, item.question), item.expected !== null ? el("span", {}, "expects ", el("b", {}, item.expected)) : "",
    item.style !== null ? el("span", {}, "style ", el("b", {}, item.style)) : "");
}

function browse(rollouts) {
  const steps = rollouts.steps.filter(s => s.groups.length);
  if (!steps.length) return [el("p", {class: "none"}, "no rollout records")];
  const step = picker("step", steps.map(s => `${s.step}${s.groups.some(plays) ? " ♪" : ""}`));
  const group = picker("prompt", []), order = picker("order", Object.keys(ORDERS));
  const body = el("div", {class: "group"}), chosen = () => steps[step.value].groups[group.value];

  function fill(wanted) {
    const groups = steps[step.value].groups;
    group.replaceChildren(...groups.map((g, i) => el("option", {value: i}, `${g.group} · ${short(g.question)}${plays(g) ? " ♪" : ""}`)));
    group.value = Math.max(0, groups.findIndex(g => g.group === wanted));
    render();
  }
  function render() {
    const shown = chosen(), left = steps[step.value].left_out;
    const sorted = [...shown.replies].sort(ORDERS[Object.keys(ORDERS)[order.value]]);
    const versions = [...new Set(shown.replies.map(r => r.version))].sort((a, b) => a - b).join(", ");
    body.replaceChildren(asked(shown),
      el("p", {class: "hint"}, `${shown.prompt_id} · policy version ${versions} · ${shown.replies.length} replies` +
        (left ? ` · ${left} groups of this step are left out (page budget)` : "")),
      el("div", {class: "replies"}, ...sorted.map(reply => card(reply, heaviest(sorted)))));
    history.replaceState(null, "", `#step=${steps[step.value].step}&group=${shown.group}`);
  }
  function turn(by) {  // next or previous group, on to the neighbouring step
    const to = Number(group.value) + by;
    if (to >= 0 && to < group.options.length) { group.value = to; render(); return; }
    const next = Number(step.value) + by;
    if (next < 0 || next >= steps.length) return;
    step.value = next;
    fill(steps[next].groups[by > 0 ? 0 : steps[next].groups.length - 1].group);
  }
  step.addEventListener("change", () => fill(null));
  group.addEventListener("change", render);
  order.addEventListener("change", render);
  const asks = new URLSearchParams(location.hash.slice(1));
  const linked = steps.findIndex(s => String(s.step) === asks.get("step"));
  const playable = steps.findLastIndex(s => s.groups.some(plays));
  step.value = linked >= 0 ? linked : playable >= 0 ? playable : steps.length - 1;
  fill(linked >= 0 ? Number(asks.get("group")) : steps[step.value].groups.find(plays)?.group);
  const back = el("button", {type: "button"}, "← previous"), on = el("button", {type: "button"}, "next →");
  back.addEventListener("click", () => turn(-1));
  on.addEventListener("click", () => turn(1));
  const legend = el("p", {class: "legend"}, ...Object.entries(CHANNELS).map(([c, name]) => el("span", {class: "ch-" + c}, el("i", {}), name)),
    el("span", {class: "up"}, el("i", {}), "weight > 0"), el("span", {class: "down"}, el("i", {}), "weight < 0"));
  return [el("div", {class: "controls"}, ...[step, group, order].map(p => p.parentNode), back, on), legend, body];
}

const plays = group => group.replies.some(r => r.silent === null);
const short = text => text.length > 60 ? text.slice(0, 58) + "…" : text;

function picker(label, options) {
  const select = el("select", {name: label}, ...options.map((text, i) => el("option", {value: i}, text)));
  el("label", {}, label + " ", select);
  return select;
}

function listening(samples) {
  const side = (pair, when) => {
    const s = pair[when];
    if (!s) return el("div", {class: "side"}, el("p", {class: "none"}, "no reply " + when));
    const verdict = s.right === null ? ["", "not checked"] : s.right ? ["good", "✓ right"] : ["bad", "✗ wrong"];
    return el("div", {class: "side"}, el("header", {}, el("span", {class: "index"}, when), el("b", {class: verdict[0]}, verdict[1])),
      player(s.audio, s.silent, `${when}: ${pair.question}`), words("text", s.said, "del"), words("heard", s.heard, "ins"));
  };
  return samples.pairs.map(pair => el("article", {class: "pair"}, asked(pair), el("div", {class: "sides"}, side(pair, "before"), side(pair, "after"))));
}
