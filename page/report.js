// The page of a run. Everything that comes from files is set as text (`el` makes text nodes), never as markup.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const COLORS = ["#2f7ed8", "#e07b39", "#3a9b5c", "#b45bbf", "#c9a227", "#d0505a", "#5a6acf", "#7f8790", "#25a0a0"];
const PHASES = ["rollout", "tail", "reward", "logprobs", "train", "sync", "probe", "eval"];
const NAMES = { // of curves that share a panel
  response_len_mean: "all", response_len_correct: "right", response_len_incorrect: "wrong", solve_all: "all right",
  solve_none: "all wrong", mismatch_k3: "a step's tokens", mismatch_sync_k3: "after the sync", mismatch_stale_k3: "older tokens",
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
  if (Array.isArray(value)) return value.map(shown).join(" to ");
  if (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e7)) return value.toExponential(2).replace(/\.?0*e/, "e");
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

// --------------------------------------------------------------------------------------------------------------- curves

const BOX = { width: 360, height: 200, left: 46, right: 8, top: 16, bottom: 20 };

function panelList() {
  const accuracies = Object.keys(run.columns).filter((name) => name.startsWith("eval_"));
  const panels = [
    ["Reward", ["reward_mean"]],
    ["Response length, tokens", ["response_len_mean", "response_len_correct", "response_len_incorrect"]],
    ["Share of clipped responses", ["response_clip_ratio"]],
    ["Held-out accuracy", accuracies],
    ["Groups all right, all wrong", ["solve_all", "solve_none"]],
    ["Share of responses with an answer", ["answered_ratio"]],
    ["Entropy", ["entropy"]],
    ["KL to the reference", ["kl"]],
    ["Gradient norm", ["grad_norm"]],
    ["Sampler against trainer, k3", ["mismatch_k3", "mismatch_sync_k3", "mismatch_stale_k3"], true],
    ["Tokens a second", ["tokens_per_second"]],
  ];
  return panels.filter(([, names]) => data.runs.some((r) => names.some((name) => r.columns[name])));
}

function scale(low, high, from, to, log) {
  const f = log ? Math.log10 : (x) => x;
  const [a, b] = [f(low), f(high)];
  const slope = (to - from) / (b - a || 1);
  return { at: (x) => from + (f(x) - a) * slope, back: (p) => a + (p - from) / slope };
}

function ticks(low, high, log) {
  if (log) {
    const [a, b] = [Math.ceil(Math.log10(low)), Math.floor(Math.log10(high))];
    const every = Math.max(1, Math.ceil((b - a + 1) / 4));
    return range(a, b + 1, every).map((e) => Number(`1e${e}`));
  }
  const raw = (high - low || 1) / 4;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= raw * 0.999);
  return range(Math.ceil(low / step), Math.floor(high / step) + 1, 1).map((n) => Number((n * step).toPrecision(8)));
}

function range(from, to, step) {
  const all = [];
  for (let i = from; i < to; i += step) all.push(i);
  return all;
}

function smooth(points) {
  const half = Math.max(1, Math.floor(points.length / 32));
  return points.map(([x], i) => {
    const near = points.slice(Math.max(0, i - half), i + half + 1);
    return [x, near.reduce((sum, p) => sum + p[1], 0) / near.length];
  });
}

const steps = data.runs.flatMap((r) => r.columns.step);
const X = scale(Math.min(...extent(steps)), Math.max(...extent(steps)), BOX.left, BOX.width - BOX.right, false);

function extent(values) {
  return [values.reduce((a, b) => Math.min(a, b), Infinity), values.reduce((a, b) => Math.max(a, b), -Infinity)];
}

function frame(title, low, high, log) {
  const y = scale(low, high, BOX.height - BOX.bottom, BOX.top, log);
  const chart = svg("svg", { viewBox: `0 0 ${BOX.width} ${BOX.height}`, role: "img", "aria-label": title });
  for (const value of ticks(low, high, log)) {
    chart.append(svg("line", { class: "grid", x1: BOX.left, x2: BOX.width - BOX.right, y1: y.at(value), y2: y.at(value) }));
    chart.append(svg("text", { x: BOX.left - 4, y: y.at(value) + 4, "text-anchor": "end" }, shown(value)));
  }
  for (const value of ticks(...extent(steps), false)) {
    chart.append(svg("text", { x: X.at(value), y: BOX.height - 5, "text-anchor": "middle" }, shown(value)));
  }
  for (const stage of data.top.stages.slice(1)) {
    const x = X.at(stage.first - 0.5);
    chart.append(svg("line", { class: "switch", x1: x, x2: x, y1: BOX.top, y2: BOX.height - BOX.bottom }));
    chart.append(svg("text", { x: x + 2, y: BOX.top - 4 }, `\u2192 ${shown(stage.context)}`));
  }
  return [chart, y];
}

function drawCurves([title, names, log]) {
  const lines = [];
  data.runs.forEach((r, i) => names.forEach((name, j) => {
    const values = r.columns[name];
    if (!values) return;
    const points = r.columns.step.map((step, k) => [step, values[k]]).filter((p) => p[1] !== null && (!log || p[1] > 0));
    const intervals = name.startsWith("eval_") ? r.columns[name.replace("eval_", "interval_")] : undefined;
    lines.push({ r, name, points, intervals, color: COLORS[(several ? i : j) % COLORS.length], dash: several ? j : 0 });
  }));
  const limit = log && data.mismatch_limit > 0 ? [data.mismatch_limit] : [];
  const spans = lines.flatMap((l) => (l.intervals || []).filter((x) => x && x[0] !== null).flat());
  let [low, high] = extent([...lines.flatMap((l) => l.points.map((p) => p[1])), ...spans, ...limit]);
  if (!log) [low, high] = [low - (high - low) * 0.05, high + (high - low) * 0.05];
  const [chart, y] = frame(title, low, high, log);
  for (const line of lines) drawLine(chart, line, y);
  if (limit.length) {
    const at = y.at(limit[0]);
    chart.append(svg("line", { class: "switch", x1: BOX.left, x2: BOX.width - BOX.right, y1: at, y2: at }));
    chart.append(svg("text", { x: BOX.left + 3, y: at - 3 }, "mismatch_limit"));
  }
  const keys = names.length > 1 && !several ? lines.map((l) => key(NAMES[l.name] ?? l.name.replace(/^eval_/, ""), l.color)) : [];
  return addPanel(title, chart, keys);
}

function drawLine(chart, { r, name, points, intervals, color, dash }, y) {
  const path = (list) => list.map(([x, v], i) => `${i ? "L" : "M"}${X.at(x).toFixed(1)} ${y.at(v).toFixed(1)}`).join("");
  const common = { fill: "none", stroke: color, "stroke-dasharray": dash ? `${6 - 2 * dash} 3` : "none" };
  const last = points.length ? points[points.length - 1][1] : "";
  const few = points.length < 30 || name.startsWith("mismatch");
  const raw = { ...common, d: path(points), "stroke-width": few ? 1.5 : 0.8, opacity: few ? 1 : 0.4 };
  chart.append(svg("path", { ...raw, "data-run": r.name, "data-series": name, "data-last": last }));
  if (!few) chart.append(svg("path", { ...common, d: path(smooth(points)), "stroke-width": 2 }));
  (intervals || []).forEach((span, k) => {
    if (!span || span[0] === null) return;
    const x = X.at(r.columns.step[k]);
    chart.append(svg("line", { stroke: color, x1: x, x2: x, y1: y.at(span[0]), y2: y.at(span[1]), opacity: 0.6 }));
  });
}

function drawPhases() {
  const phases = PHASES.filter((p) => run.columns["time_" + p]);
  const count = run.columns.step.length;
  const bins = Math.min(count, 80);
  const sums = range(0, bins, 1).map((b) => {
    const rows = range(Math.floor((b * count) / bins), Math.floor(((b + 1) * count) / bins), 1);
    return phases.map((p) => rows.reduce((sum, i) => sum + (run.columns["time_" + p][i] || 0), 0) / rows.length);
  });
  const high = Math.max(...sums.map((bar) => bar.reduce((a, b) => a + b, 0)), 1e-9);
  const [chart, y] = frame("Seconds a step, by phase", 0, high, false);
  const width = (BOX.width - BOX.left - BOX.right) / bins;
  sums.forEach((bar, b) => {
    let below = 0;
    bar.forEach((seconds, i) => {
      const [top, bottom] = [y.at(below + seconds), y.at(below)];
      const place = { x: BOX.left + b * width, y: top, width: width + 0.2, height: bottom - top };
      chart.append(svg("rect", { ...place, fill: COLORS[i], "data-phase": phases[i] }));
      below += seconds;
    });
  });
  addPanel(`Seconds a step, by phase${several ? ": " + run.name : ""}`, chart, phases.map((p, i) => key(p, COLORS[i])));
}

function key(name, color) {
  const mark = el("i");
  mark.style.background = color;
  return el("span", { class: "key" }, mark, name);
}

function addPanel(title, chart, keys) {
  const cursor = svg("line", { class: "cursor", y1: BOX.top, y2: BOX.height - BOX.bottom, visibility: "hidden" });
  chart.append(cursor);
  byId("panels").append(el("div", { class: "panel" }, el("h3", {}, title), chart, ...keys));
  chart.onpointermove = (event) => {
    const frame = chart.getBoundingClientRect();
    hover(X.back(((event.clientX - frame.left) / frame.width) * BOX.width));
  };
  chart.onpointerleave = () => hover(null);
}

function hover(x) {
  byId("hover").hidden = x === null;
  const cursors = document.querySelectorAll(".cursor");
  if (x === null) return cursors.forEach((c) => c.setAttribute("visibility", "hidden"));
  const all = run.columns.step;
  const step = all.reduce((best, s) => (Math.abs(s - x) < Math.abs(best - x) ? s : best), all[0]);
  cursors.forEach((c) => {
    c.setAttribute("visibility", "visible");
    c.setAttribute("x1", X.at(step));
    c.setAttribute("x2", X.at(step));
  });
  const places = data.runs.map((r) => r.columns.step.indexOf(step));
  const names = Object.keys(run.columns).filter((name) => !["step", "stage"].includes(name));
  const rows = names.map((name) => {
    const cells = data.runs.map((r, i) => el("td", {}, shown(r.columns[name] ? r.columns[name][places[i]] : null)));
    return el("tr", {}, el("td", { class: "faint" }, name), ...cells);
  });
  byId("hover").replaceChildren(el("b", {}, `step ${step}`), el("table", {}, ...rows));
}

// ------------------------------------------------------------------------------------------------------------- rollouts

const FILTERS = {
  all: () => true,
  right: (s) => s.reward >= 1,
  wrong: (s) => s.reward < 1,
  "cut off": (s) => s.finish === "length",
  "no answer": (s) => s.answer === null,
  "with its text": (s) => s.text !== null,
};
const SORTS = {
  "as written": null,
  "longest first": (s) => -s.length,
  "shortest first": (s) => s.length,
  "highest reward": (s) => -s.reward,
  "lowest reward": (s) => s.reward,
  "highest advantage": (s) => -(s.advantage ?? -Infinity),
  "lowest advantage": (s) => s.advantage ?? Infinity,
  "largest mismatch": (s) => -(s.mismatch ?? -Infinity),
};
const loaded = {};
let dump = null; // of the chosen step
let order = []; // places of the samples that are listed
let position = 0; // in `order`

async function load(step) {
  if (!loaded[step]) {
    const bytes = Uint8Array.from(atob(byId(`dump-${step}`).textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    loaded[step] = JSON.parse(await new Response(stream).text());
  }
  return loaded[step];
}

async function choose(step, filter) {
  byId("step").value = step;
  await showStep();
  byId("filter").value = filter;
  list();
  byId("rollouts").scrollIntoView();
}

async function showStep() {
  dump = await load(byId("step").value);
  const names = dump.problems.map((p, i) => el("option", { value: i }, p.id));
  byId("problem").replaceChildren(el("option", { value: "" }, `all ${names.length}`), ...names);
  drawHistograms();
  list();
}

function list() {
  const [problem, filter, text] = [byId("problem").value, FILTERS[byId("filter").value], byId("find").value];
  const value = SORTS[byId("sort").value];
  order = range(0, dump.samples.length, 1).filter((i) => {
    const s = dump.samples[i];
    return (problem === "" || s.problem === Number(problem)) && filter(s) && (text === "" || mentions(s, text));
  });
  if (value) order.sort((a, b) => value(dump.samples[a]) - value(dump.samples[b]) || a - b);
  byId("list").replaceChildren(...order.map(listItem));
  byId("count").replaceChildren(`${order.length} of ${dump.samples.length} samples`);
  select(0);
}

function mentions(sample, text) {
  const problem = dump.problems[sample.problem];
  return [problem.id, problem.prompt, sample.answer, sample.text].some((t) => t !== null && t.includes(text));
}

function listItem(place, i) {
  const s = dump.samples[place];
  const mark = el("span", { class: s.reward >= 1 ? "right" : "wrong" }, s.reward >= 1 ? "\u2713" : "\u2717");
  const figures = [shown(s.length), s.advantage === null ? "-" : s.advantage.toFixed(2)].map((t) => el("span", {}, t));
  const item = el("li", { role: "option" }, mark, ...figures, el("span", {}, s.answer ?? "no answer"));
  item.onclick = () => select(i);
  return item;
}

function select(i) {
  const items = byId("list").children;
  for (const item of byId("list").querySelectorAll("[aria-selected]")) item.removeAttribute("aria-selected");
  position = Math.max(0, Math.min(i, order.length - 1));
  if (!order.length) return byId("sample").replaceChildren(el("p", {}, "No sample is like that."));
  items[position].setAttribute("aria-selected", "true");
  const [list, item] = [byId("list"), items[position]];
  if (item.offsetTop < list.scrollTop + list.offsetTop || item.offsetTop + item.offsetHeight > list.scrollTop + list.offsetTop + list.clientHeight)
    list.scrollTop = item.offsetTop - list.offsetTop - list.clientHeight / 2;
  byId("sample").replaceChildren(...sampleNodes(dump.samples[order[position]]));
}

function sampleNodes(s) {
  const problem = dump.problems[s.problem];
  const golds = Array.isArray(problem.gold) ? problem.gold : [problem.gold];
  const facts = [`reward ${shown(s.reward)}`, `advantage ${shown(s.advantage)}`, `${shown(s.length)} tokens`];
  facts.push(s.finish === "length" ? "cut off" : `ended: ${s.finish}`);
  if (s.mismatch !== null) facts.push(`mismatch k3 ${shown(s.mismatch)}`);
  const nodes = [
    el("p", {}, el("b", {}, problem.id), ` sample ${s.sample}: `, el("span", { class: "faint" }, facts.join(", "))),
    el("div", { class: "problem" }, ...withFormulas(problem.prompt)),
    el("div", { class: "pair" },
      el("div", { class: s.reward >= 1 ? "right" : "wrong" }, el("b", {}, "answer "), ...answerNodes(s.answer)),
      el("div", {}, el("b", {}, "gold "), ...golds.flatMap((g) => [...answerNodes(g), " "]))),
  ];
  if (s.why) nodes.push(el("details", { class: "why" }, el("summary", {}, "why"), el("pre", {}, s.why)));
  return [...nodes, ...responseNodes(s)];
}

function responseNodes(s) {
  if (s.text === null) {
    return [el("p", { class: "faint" }, `This text is not in the page, which would be too large: it is in ${dump.file}.`)];
  }
  if (s.tokens) return [shadedNode(s.tokens)];
  const end = s.text.indexOf("</think>");
  if (end < 0) return [foldedNode("response, its thinking not ended", s.text, s.text.length < 2000)];
  const thinking = s.text.slice(0, end + 8);
  return [foldedNode("thinking", thinking, thinking.length < 500), el("pre", { class: "rest" }, s.text.slice(end + 8))];
}

function foldedNode(name, text, open) {
  const title = `${name}, ${text.length.toLocaleString("en")} characters`;
  const node = el("details", { class: "thinking" }, el("summary", {}, title), el("pre", {}, text));
  node.open = open;
  return node;
}

// [[text, trainer's log-probability less the sampler's], ...]: the larger the difference, the darker.
function shadedNode(tokens) {
  return el("pre", { class: "tokens" }, ...tokens.map(([text, d]) => {
    const node = el("span", { title: d === null ? "" : `log-ratio ${shown(d)}` }, text);
    const strength = Math.min(1, Math.abs(d ?? 0) * 2);
    if (strength > 0.005) node.style.background = `rgb(${d > 0 ? "40 160 80" : "220 70 50"} / ${strength})`;
    return node;
  }));
}

function answerNodes(answer) {
  if (answer === null || answer === undefined) return [el("span", { class: "faint" }, "none")];
  const text = String(answer);
  const nodes = [el("code", {}, text)];
  if (/[\\^_]/.test(text)) nodes.push(" ", formula(text, false, text));
  return nodes;
}

const FORMULAS = /\$\$([^]+?)\$\$|\\\[([^]+?)\\\]|\\\(([^]+?)\\\)|\$([^$\n]+?)\$/g;

function withFormulas(text) {
  const nodes = [];
  let end = 0;
  for (const match of text.matchAll(FORMULAS)) {
    nodes.push(text.slice(end, match.index), formula(match.slice(1).find((t) => t), Boolean(match[1] || match[2]), match[0]));
    end = match.index + match[0].length;
  }
  return [...nodes, text.slice(end)];
}

// KaTeX in its safe mode; what it cannot read stays as it is written.
function formula(tex, display, written) {
  const node = el("span", { class: "formula" });
  const options = { output: "mathml", displayMode: display, trust: false, strict: "ignore", maxExpand: 200, maxSize: 20 };
  try {
    if (tex.length > 5000) throw new RangeError("too long");
    katex.render(tex, node, options);
  } catch {
    node.replaceChildren(written);
  }
  return node;
}

document.addEventListener("keydown", (event) => {
  if (/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName) || event.altKey || event.ctrlKey || event.metaKey) return;
  const move = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
  if (!move || !dump || (event.target !== byId("list") && !inSight(byId("browser")))) return;
  event.preventDefault();
  select(position + move);
});

function inSight(node) {
  const { top, bottom } = node.getBoundingClientRect();
  return top < innerHeight / 2 && bottom > innerHeight / 4;
}

// ---------------------------------------------------------------------------------------------------------- evaluations

function drawEvaluations() {
  const rows = data.evaluations;
  if (!rows.length) return byId("results").append("No final evaluation yet.");
  const names = Object.keys(rows[0]);
  const head = el("tr", {}, ...names.map((name) => el("th", {}, name)));
  const lines = rows.map((row) => el("tr", {}, ...names.map((n) => el("td", {}, typeof row[n] === "string" ? row[n] : shown(row[n])))));
  byId("results").append(el("div", { class: "scroll" }, el("table", {}, head, ...lines)));
}

function drawHistograms() {
  const groups = dump.problems.map(() => []);
  for (const s of dump.samples) groups[s.problem].push(s.reward >= 1 ? 1 : 0);
  const rates = groups.filter((g) => g.length).map((g) => g.reduce((a, b) => a + b) / g.length);
  const longest = dump.samples.reduce((a, s) => Math.max(a, s.length), 1);
  const lengths = (right) => dump.samples.filter((s) => (s.reward >= 1) === right).map((s) => s.length);
  const step = byId("step").value;
  byId("histograms").replaceChildren(
    histogram(`Accuracy of a problem, rollouts of step ${step}`, [["problems", rates, COLORS[0]]], 1, 11),
    histogram(`Length of right and wrong responses, step ${step}`,
      [["right", lengths(true), COLORS[2]], ["wrong", lengths(false), COLORS[5]]], longest, 24));
}

function histogram(title, series, high, bins) {
  const counts = series.map(([, values]) => {
    const bars = new Array(bins).fill(0);
    for (const v of values) bars[Math.min(bins - 1, Math.floor((v / high) * bins))] += 1;
    return bars;
  });
  const most = Math.max(1, ...counts.flat());
  const y = scale(0, most, BOX.height - BOX.bottom, BOX.top, false);
  const width = (BOX.width - BOX.left - BOX.right) / bins;
  const chart = svg("svg", { viewBox: `0 0 ${BOX.width} ${BOX.height}`, role: "img", "aria-label": title });
  for (const value of ticks(0, most, false)) {
    chart.append(svg("line", { class: "grid", x1: BOX.left, x2: BOX.width - BOX.right, y1: y.at(value), y2: y.at(value) }));
    chart.append(svg("text", { x: BOX.left - 4, y: y.at(value) + 4, "text-anchor": "end" }, shown(value)));
  }
  counts.forEach((bars, j) => bars.forEach((n, b) => {
    const thin = (width - 1) / series.length;
    const place = { x: BOX.left + b * width + j * thin, y: y.at(n), width: thin, height: y.at(0) - y.at(n) };
    chart.append(svg("rect", { ...place, fill: series[j][2] }));
  }));
  for (const at of [0, high / 2, high]) {
    const x = BOX.left + (at / high) * (BOX.width - BOX.left - BOX.right);
    chart.append(svg("text", { x, y: BOX.height - 5, "text-anchor": at === high ? "end" : "middle" }, shown(at)));
  }
  return el("div", { class: "panel" }, el("h3", {}, title), chart, ...series.map(([name, , color]) => key(name, color)));
}

// ---------------------------------------------------------------------------------------------------------------- start

function start() {
  drawTop();
  if (several) data.runs.forEach((r, i) => byId("legend").append(key(r.name, COLORS[i % COLORS.length])));
  panelList().forEach(drawCurves);
  drawPhases();
  drawEvaluations();
  byId("step").append(...data.dumps.map((d) => el("option", { value: d.step }, d.step)));
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

start();
