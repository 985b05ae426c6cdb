// The page of a run: its top, its evaluations, and what all parts use. Everything that comes from files is set as text
// (`el` makes text nodes), never as markup.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const COLORS = ["#2f7ed8", "#e07b39", "#3a9b5c", "#b45bbf", "#c9a227", "#d0505a", "#7f8790", "#25a0a0"];
const PHASES = ["rollout", "tail", "reward", "logprobs", "train", "sync", "probe", "eval"];
const NAMES = { // of curves that share a panel
  response_len_mean: "all", response_len_correct: "right", response_len_incorrect: "wrong", solve_all: "all right",
  solve_none: "all wrong", mismatch_k3: "a step's tokens", mismatch_sync_k3: "after the sync",
  mismatch_stale_k3: "older tokens",
};
const run = data.runs[0];
const several = data.runs.length > 1;

const byId = (id) => document.getElementById(id);

function el(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function shown(value) {
  if (value === null || value === undefined) return "-";
  const size = Math.abs(value);
  if (value !== 0 && (size < 1e-3 || size >= 1e7)) return value.toExponential(2).replace(/\.?0*e/, "e");
  return Number.isInteger(value) ? value.toLocaleString("en") : String(Number(value.toPrecision(4)));
}

// -------------------------------------------------------------------------------------------------------------- the top

function drawTop() {
  byId("name").append(data.top.name);
  for (const sentence of data.top.verdict) byId("verdict").append(el("p", {}, sentence));
  for (const [name, value] of data.top.facts) byId("facts").append(el("dt", {}, name), el("dd", {}, value));
  const stages = data.top.stages.map((s) => `context ${shown(s.context)}: steps ${s.first} to ${s.last}`);
  byId("stages").append("Stages: " + stages.join("; "));
  byId("alarm-count").textContent = data.alarms.length;
  for (const alarm of data.alarms) byId("alarm-list").append(alarmItem(alarm));
  if (!data.alarms.length) byId("alarm-list").append(el("li", {}, "Nothing that this page looks for."));
}

function alarmItem(alarm) {
  const item = el("li", {}, `Step ${alarm.step}: ${alarm.text}. `);
  if (alarm.samples !== null) {
    const button = el("button", { type: "button" }, `samples of step ${alarm.samples}`);
    button.onclick = () => choose(alarm.samples, alarm.filter);
    item.append(button);
  }
  return item;
}

// ---------------------------------------------------------------------------------------------------------- evaluations

function drawEvaluations() {
  const rows = data.evaluations;
  if (!rows.length) return byId("results").append("No final evaluation yet.");
  const names = Object.keys(rows[0]);
  const head = el("tr", {}, ...names.map((name) => el("th", {}, name)));
  const text = (value) => (typeof value === "string" ? value : shown(value));
  const lines = rows.map((row) => el("tr", {}, ...names.map((name) => el("td", {}, text(row[name])))));
  byId("results").append(el("div", { class: "scroll" }, el("table", {}, head, ...lines)));
}

// ---------------------------------------------------------------------------------------------------------------- start

function start() {
  drawTop();
  if (several) data.runs.forEach((r, i) => byId("legend").append(key(r.name, { color: COLORS[i % COLORS.length] })));
  panelList().forEach(drawCurves);
  drawPhases();
  showValues(null);
  drawEvaluations();
  const name = (d) => (d.texts ? String(d.step) : `${d.step} (figures only)`);
  byId("step").append(...data.dumps.map((d) => el("option", { value: d.step }, name(d))));
  byId("filter").append(...Object.keys(FILTERS).map((f) => el("option", {}, f)));
  byId("sort").append(...Object.keys(SORTS).map((s) => el("option", {}, s)));
  byId("choice").onsubmit = (event) => event.preventDefault();
  byId("step").onchange = showStep;
  for (const id of ["problem", "filter", "sort"]) byId(id).onchange = list;
  byId("find").oninput = list;
  byId("no-rollouts").hidden = data.dumps.length > 0;
  if (data.left_out) byId("left-out").append(`${data.left_out} other dumped steps are not in this page: see rollouts/.`);
  for (const id of ["choice", "browser"]) byId(id).hidden = data.dumps.length === 0;
  if (data.dumps.length) {
    byId("step").value = data.dumps[data.dumps.length - 1].step;
    showStep();
  }
}

document.addEventListener("DOMContentLoaded", start); // when curves.js and rollouts.js stand too
