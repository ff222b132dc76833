// What pages are made of. Everything from a run is set as text: nothing here parses markup.

const DATA = JSON.parse(document.getElementById("data").textContent);
const SPACE = document.querySelector("svg").namespaceURI;

function el(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function svg(tag, attributes, ...children) {
  const node = document.createElementNS(SPACE, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function section(id, title, notes, ...children) {
  const warnings = notes.map(note => el("p", {class: "note"}, note));
  return el("section", {id, "aria-label": title}, el("h2", {}, title), ...warnings, ...children);
}

const titled = (title, shown, none) => el("section", {class: "part", "aria-label": title}, el("h3", {}, title),
  shown ?? el("p", {class: "none"}, none));

const listed = facts => el("dl", {class: "facts"}, ...facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));

// heads: [text, further words, explanation]; a column whose head starts with ":" holds words, the others hold numbers
function tabled(label, heads, body, frame = "scroll", style = "figures") {
  const top = heads.map(([text, more, title]) => el("th", {scope: "col", class: text[0] === ":" ? "said" : "num", ...(title ? {title} : {})},
    text.replace(/^:/, ""), more ? el("small", {}, more) : ""));
  return el("div", {class: frame, tabindex: 0, role: "region", "aria-label": label},
    el("table", {class: style}, el("thead", {}, el("tr", {}, ...top)), el("tbody", {}, ...body)));
}

function heading(head) {
  const parts = [el("h1", {}, head.name), ...head.notes.map(note => el("p", {class: "note"}, note)), listed(head.facts)];
  if (head.versions.length) parts.push(fold("versions", el("table", {class: "plain"}, ...head.versions.map(([name, value]) =>
    el("tr", {}, el("th", {scope: "row"}, name), el("td", {}, value))))));
  if (head.config) parts.push(fold(head.file ?? "config.yaml", el("pre", {}, head.config)));
  return el("header", {class: "top"}, ...parts);
}

const fold = (title, ...children) => el("details", {}, el("summary", {}, title), ...children);
