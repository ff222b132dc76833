// Listening blind: two buttons, three questions a pair, votes by key. The key to the sides is opened after the last vote.

const SIDES = ["a", "b"], WORDS = {helpfulness: "Which reply helps more?", naturalness: "Which reply sounds more natural?", overall: "Which reply is better overall?"};
const CHOICES = [["a", "A is better"], ["b", "B is better"], ["t", "no difference"], ["s", "skip"]];
const STORE = "wavgate-votes " + DATA.id, ASKED = DATA.items.length * DATA.questions.length;
let votes = [], rater = "", playing = null;
const heard = {};  // place of the pair -> sides that were played
const stage = el("main", {});

function recall() {  // what this browser kept of this page
  try {
    const kept = JSON.parse(localStorage.getItem(STORE) ?? "{}");
    const sound = Array.isArray(kept.votes) && kept.votes.length <= ASKED && kept.votes.every(v => CHOICES.some(([name]) => name === v));
    if (sound) { votes = kept.votes; rater = String(kept.rater ?? "").slice(0, 60); }
  } catch { /* nothing is kept where the browser forbids it */ }
}

function keep() {
  try { localStorage.setItem(STORE, JSON.stringify({votes, rater})); } catch { /* as above */ }
}

const done = () => votes.length === ASKED;
const pairAt = () => Math.floor(votes.length / DATA.questions.length);
const questionAt = () => DATA.questions[votes.length % DATA.questions.length];
const bothHeard = () => SIDES.every(side => heard[pairAt()]?.has(side));

function play(side) {
  stop();
  playing = stage.querySelector(`audio[data-side="${side}"]`);
  if (!playing) return;
  playing.currentTime = 0;
  playing.play().catch(() => { playing = null; });
  (heard[pairAt()] ??= new Set()).add(side);
  update();
}

function stop() {
  playing?.pause();
  playing = null;
}

function vote(name) {
  if (done() || (name !== "s" && !bothHeard())) return;
  const before = pairAt();
  votes.push(name);
  keep();
  if (pairAt() !== before || done()) draw(); else update();
}

function undo() {
  if (done() || !votes.length) return;  // once the sides are known there is no way back
  const before = pairAt();
  votes.pop();
  keep();
  if (pairAt() !== before) draw(); else update();
}

function update() {  // what changes within a pair
  const ready = bothHeard(), number = votes.length % DATA.questions.length + 1;
  stage.querySelector(".question").textContent = WORDS[questionAt()];
  stage.querySelector(".count").textContent = `pair ${pairAt() + 1} of ${DATA.items.length}, question ${number} of ${DATA.questions.length}: ${questionAt()}`;
  stage.querySelector("progress").value = votes.length;
  stage.querySelector(".kept").textContent = `${votes.length} of ${ASKED} votes; this browser keeps them, the file is for others`;
  stage.querySelector(".wait").textContent = ready ? "" : "listen to both first";
  for (const button of stage.querySelectorAll("button[data-vote]")) button.disabled = button.dataset.vote !== "s" && !ready;
  stage.querySelector("button[data-undo]").disabled = !votes.length;
  for (const button of stage.querySelectorAll("button[data-play]")) button.classList.toggle("heard", Boolean(heard[pairAt()]?.has(button.dataset.play)));
}

const key = letter => el("kbd", {}, letter);

function draw() {
  stop();
  if (done()) { stage.replaceChildren(...results()); return; }
  const place = pairAt(), item = DATA.items[place];
  const asked = el("p", {class: "asked"}, el("span", {}, "asked: ", el("q", {}, item.question)), ...(item.style ? [el("span", {}, "manner: ", el("b", {}, item.style))] : []));
  const players = SIDES.map((side, i) => {
    const button = el("button", {type: "button", class: "play", "data-play": side}, "▶ ", side.toUpperCase(), " ", key(String(i + 1)));
    button.addEventListener("click", () => play(side));
    return el("div", {class: "player"}, button, el("audio", {src: DATA.audio[place + side], preload: "auto", "data-side": side}));
  });
  const buttons = CHOICES.map(([name, text]) => {
    const button = el("button", {type: "button", "data-vote": name}, text + " ", key(name.toUpperCase()));
    button.addEventListener("click", () => vote(name));
    return button;
  });
  const back = el("button", {type: "button", "data-undo": ""}, "undo ", key("U"));
  back.addEventListener("click", undo);
  stage.replaceChildren(el("p", {class: "count", "aria-live": "polite"}), el("progress", {max: ASKED, value: votes.length, "aria-label": "votes"}), asked,
    el("div", {class: "players"}, ...players), el("h2", {class: "question", "aria-live": "polite"}), el("p", {class: "choices"}, ...buttons, back), el("p", {class: "wait hint"}), keeping());
  update();
}

function keeping() {  // who votes, and a file of the votes so far
  const name = el("input", {type: "text", maxlength: 60, placeholder: "your initials", "aria-label": "your initials", autocomplete: "off"});
  name.value = rater;
  name.addEventListener("input", () => { rater = name.value; keep(); });
  const save = el("button", {type: "button", "data-save": ""}, "save votes");
  save.addEventListener("click", () => download(name));
  return el("p", {class: "keeping"}, el("label", {}, "rater ", name), save, el("span", {class: "hint kept"}));
}

function opened() {
  const bytes = Uint8Array.from(atob(DATA.key), c => c.charCodeAt(0));
  return JSON.parse(new TextDecoder().decode(bytes));
}

function sided(names) {  // votes as left, right, tie or skip
  return votes.map((v, n) => {
    const place = Math.floor(n / DATA.questions.length), swap = names.swapped[place];
    const vote = v === "t" ? "tie" : v === "s" ? "skip" : (v === "a") !== swap ? "left" : "right";
    return {item: DATA.items[place].item, question: DATA.questions[n % DATA.questions.length], vote};
  });
}

function download(name) {
  rater = rater.replace(/[\x00-\x1f\x7f-\x9f\u2028\u2029]/g, "");
  if (!rater.trim()) { name.focus(); name.setAttribute("aria-invalid", "true"); return; }
  const names = done() ? opened() : null;  // a file saved midway does not tell the sides
  const told = names ? sided(names) : votes.map((v, n) => ({item: DATA.items[Math.floor(n / DATA.questions.length)].item, question: DATA.questions[n % DATA.questions.length], vote: v}));
  const file = {format: DATA.format, page: DATA.id, rater: rater.trim(), left: names?.left ?? null, right: names?.right ?? null, votes: told};
  const link = el("a", {href: URL.createObjectURL(new Blob([JSON.stringify(file, null, 1) + "\n"], {type: "application/json"})),
    download: `votes-${rater.trim().replace(/[^A-Za-z0-9_-]+/g, "-")}.json`});
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function signTest(wins, losses) {  // two-sided, exact, ties left out
  const n = wins + losses;
  let term = 0.5 ** n, sum = 0;
  for (let k = 0; k <= Math.min(wins, losses); k++) { sum += term; term *= (n - k) / (k + 1); }
  return Math.min(1, 2 * sum);
}

function majority(choices) {  // as report/study/votes.py: more than half of those who voted, else a tie
  const voted = choices.filter(v => v !== "skip");
  if (!voted.length) return "skip";
  return ["left", "right"].find(side => 2 * voted.filter(v => v === side).length > voted.length) ?? "tie";
}

function results() {
  const names = opened(), all = sided(names);
  const rows = DATA.questions.map(question => {
    const byPrompt = {};
    for (const v of all.filter(v => v.question === question)) (byPrompt[v.item.replace(/\/[^/]*$/, "")] ??= []).push(v.vote);
    const verdicts = Object.values(byPrompt).map(majority), of = choice => verdicts.filter(v => v === choice).length;
    const [wins, losses] = [of("left"), of("right")], p = signTest(wins, losses);
    return el("tr", {}, el("th", {scope: "row"}, question), ...[wins, losses, of("tie"), of("skip"), wins + losses ? (100 * wins / (wins + losses)).toFixed(1) + " %" : "–", p < 0.0001 ? "< 0.0001" : p.toFixed(4)]
      .map(value => el("td", {class: "num"}, String(value))));
  });
  const heads = [":", `${names.left} wins`, `${names.right} wins`, "no difference", "skipped", `${names.left} of the decided`, "sign test p"];
  return [el("h2", {}, "The sides"), el("p", {}, "You compared ", el("b", {}, names.left), " with ", el("b", {}, names.right), "; which of them was A changed from pair to pair."),
    tabled("votes by question", heads.map(head => [head]), rows),
    el("p", {class: "hint"}, "A prompt counts once, whatever number of its seeds you heard. The test is two-sided and leaves ties and skipped prompts out. wavgate compare --votes FILE... puts several raters' files together."), keeping()];
}

document.addEventListener("keydown", event => {
  if (event.target instanceof HTMLInputElement || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const name = event.key.toLowerCase();
  if (name === "1" || name === "2") play(SIDES[name - 1]);
  else if (name === "r" && playing) play(playing.dataset.side);
  else if (CHOICES.some(([letter]) => letter === name)) vote(name);
  else if (name === "u" || name === "backspace") undo();
  else return;
  event.preventDefault();
});

document.title = "Which reply is better? · WavGate";
recall();
document.body.append(el("header", {class: "top"}, el("h1", {}, "Which reply is better?"), ...DATA.notes.map(note => el("p", {class: "note"}, note)),
  el("p", {class: "hint"}, "Play both with ", key("1"), " and ", key("2"), " (", key("R"), " again), then answer with ", key("A"), " ", key("B"), " ", key("T"), " ", key("S"), "; ", key("U"), " takes the last answer back. Which side is which is told at the end.")), stage);
draw();
document.documentElement.dataset.readyMs = Math.round(performance.now());
