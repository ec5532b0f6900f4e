"use strict";
// Every text goes in as text; drawings are parsed as XML, in which the page's policy runs no script.
const part = (id) => document.getElementById(id);
const drawn = {};
const number = (value) =>
  typeof value !== "number" ? "–"
    : value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e5) ? value.toExponential(2)
      : String(Number(value.toPrecision(4)));
const duration = (seconds) =>
  seconds < 100 ? `${Math.round(seconds)} s`
    : seconds < 6000 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;

function element(name, kind, ...content) {
  const made = document.createElement(name);
  if (kind) made.className = kind;
  made.append(...content);
  return made;
}

function draw(id, svg) {
  if (drawn[id] === svg) return;
  drawn[id] = svg;
  const parsed = new DOMParser().parseFromString(svg, "image/svg+xml").documentElement;
  part(id).replaceChildren(document.importNode(parsed, true));
}

function card(name, value, note) {
  return element("div", "figure", element("div", "name", name), element("div", "value", value),
    element("div", "beside", note));
}

function cards(state) {
  const best = state.best;
  const made = [
    card(`best ${state.monitor || "value"}`, number(best?.validation), "on validation"),
    card("best run", best ? best.unit : "–", best ? best.kind : ""),
    card("compute in runs", number(state.spent), `of ${number(state.budget)}`),
    card("runs", String(state.over), `over of ${state.known} so far`),
    card("at work", String(state.workers), state.workers === 1 ? "worker" : "workers"),
  ];
  const left = state.seconds_left;
  made.push(card("time left", typeof left === "number" ? duration(left) : "–",
    typeof left === "number" ? "about" : state.status === "finished" ? "none: it is over" : "not known yet"));
  part("cards").replaceChildren(...made);
}

function row(run) {
  const bar = element("progress");
  bar.max = 1;
  bar.value = Math.min(Math.max(run.ends, 0), 1);
  const chosen = Object.entries(run.choices)
    .map(([name, value]) => `${name} ${typeof value === "number" ? number(value) : value}`);
  const words = run.error || [run.change, ...chosen].filter(Boolean).join(", ");
  return element("tr", run.is_best ? "best" : "", element("td", "", run.unit),
    element("td", "", run.kind), element("td", "", run.status), element("td", "", bar),
    element("td", "", words), element("td", "n", number(run.validation)),
    element("td", "n", number(run.spent)));
}

const NOTICES = {
  finished: "The study is finished. The page stays; it goes on if the study is given a larger budget.",
  interrupted: "Nobody works on the study now; trimtab resume goes on with it.",
  failed: "The study failed; trimtab resume tries again.",
};

function show(state) {
  part("status").textContent = state.status;
  part("status").className = `badge ${state.status}`;
  part("about").textContent =
    `${state.task}; method ${state.method}; ${number(state.budget)} runs to spend; seed ${state.seed}.`;
  part("notice").textContent = NOTICES[state.status] || "";
  part("notice").className = state.status === "finished" ? "over" : "";
  part("progress").max = state.budget;
  part("progress").value = Math.min(state.spent, state.budget);
  part("course-title").textContent = `Best ${state.monitor || "value"} on validation`;
  cards(state);
  draw("course", state.course);
  draw("tree", state.tree);
  part("runs").replaceChildren(...state.rows.map(row));
  const hidden = state.known - state.rows.length;
  part("more").textContent = hidden > 0 ? `${hidden} earlier runs are in the report: trimtab report ${state.study}` : "";
  document.documentElement.dataset.shown = String(state.known);
}

let shown = "";
async function refresh() {
  let pause = 2000;
  try {
    const answer = await fetch("/study.json", { cache: "no-store" });
    const text = await answer.text();
    if (!answer.ok) throw new Error(JSON.parse(text).error);
    if (text !== shown) show(JSON.parse(text));
    shown = text;
    if (JSON.parse(text).status !== "running") pause = 10000;
    part("fresh").textContent = `as of ${new Date().toLocaleTimeString()}`;
  } catch (error) {
    const gone = error instanceof TypeError;
    part("fresh").textContent = "not up to date";
    part("notice").className = "";
    part("notice").textContent = gone
      ? "trimtab watch has ended, or cannot be reached; this is the last that it told."
      : `The study cannot be read just now: ${error.message}`;
    shown = "";
  }
  setTimeout(refresh, pause);
}
refresh();
