// Curves of one or several runs, one panel a group of metrics, drawn as SVG.

const BOX = { width: 360, height: 200, left: 46, right: 8, top: 16, bottom: 20 };
const DASHES = ["none", "6 3", "2 2", "8 2 2 2", "1 3", "12 4"];
const panels = []; // what `showValues` writes to: {names, cursor, values}

function panelList() {
  const accuracies = new Set(data.runs.flatMap((r) => Object.keys(r.columns).filter((name) => name.startsWith("eval_"))));
  const all = [
    ["Reward", ["reward_mean"]],
    ["Response length, tokens", ["response_len_mean", "response_len_correct", "response_len_incorrect"]],
    ["Share of clipped responses", ["response_clip_ratio"]],
    ["Held-out accuracy", [...accuracies]],
    ["Groups all right, all wrong", ["solve_all", "solve_none"]],
    ["Share of responses with an answer", ["answered_ratio"]],
    ["Entropy", ["entropy"]],
    ["KL to the reference", ["kl"]],
    ["Gradient norm", ["grad_norm"]],
    ["Sampler against trainer, k3", ["mismatch_k3", "mismatch_sync_k3", "mismatch_stale_k3"], true],
    ["Tokens a second", ["tokens_per_second"]],
  ];
  return all.filter(([, names]) => data.runs.some((r) => names.some((name) => r.columns[name])));
}

function range(from, to, step = 1) {
  const all = [];
  for (let i = from; i < to; i += step) all.push(i);
  return all;
}

function extent(values) {
  return [values.reduce((a, b) => Math.min(a, b), Infinity), values.reduce((a, b) => Math.max(a, b), -Infinity)];
}

function scale(low, high, from, to, log = false) {
  const f = log ? Math.log10 : (x) => x;
  const [a, b] = [f(low), f(high)];
  const slope = (to - from) / (b - a || 1);
  return { at: (x) => from + (f(x) - a) * slope, back: (p) => a + (p - from) / slope };
}

function ticks(low, high, log = false) {
  if (log) {
    const [a, b] = [Math.ceil(Math.log10(low)), Math.floor(Math.log10(high))];
    return range(a, b + 1, Math.max(1, Math.ceil((b - a + 1) / 4))).map((e) => Number(`1e${e}`));
  }
  const raw = (high - low || 1) / 4;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= raw * 0.999);
  return range(Math.ceil(low / step), Math.floor(high / step) + 1).map((n) => Number((n * step).toPrecision(8)));
}

// A moving average within each stage, as plot.py draws it. points: [step, value, stage]
function smooth(points) {
  const half = Math.max(1, Math.floor(points.length / 32));
  return points.map(([x, , stage], i) => {
    const near = points.slice(Math.max(0, i - half), i + half + 1).filter((p) => p[2] === stage);
    return [x, near.reduce((sum, p) => sum + p[1], 0) / near.length, stage];
  });
}

const allSteps = [...new Set(data.runs.flatMap((r) => r.columns.step))].sort((a, b) => a - b);
const [firstStep, lastStep] = [allSteps[0], allSteps[allSteps.length - 1]];
const X = scale(firstStep - 0.5, lastStep + 0.5, BOX.left, BOX.width - BOX.right);

function axes(title, low, high, log) {
  const y = scale(low, high, BOX.height - BOX.bottom, BOX.top, log);
  const chart = svg("svg", { viewBox: `0 0 ${BOX.width} ${BOX.height}`, role: "img", "aria-label": title });
  const x = { x1: BOX.left, x2: BOX.width - BOX.right };
  for (const value of ticks(low, high, log)) {
    chart.append(svg("line", { class: "grid", ...x, y1: y.at(value), y2: y.at(value) }));
    chart.append(svg("text", { x: BOX.left - 4, y: y.at(value) + 4, "text-anchor": "end" }, shown(value)));
  }
  return [chart, y];
}

function frame(title, low, high, log) {
  const [chart, y] = axes(title, low, high, log);
  for (const value of ticks(firstStep, lastStep).filter(Number.isInteger)) {
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
  const present = names.filter((name) => data.runs.some((r) => r.columns[name]));
  const lines = data.runs.flatMap((r, i) => present.filter((name) => r.columns[name]).map((name) => {
    const [j, stages] = [present.indexOf(name), r.columns.stage || []];
    const points = r.columns.step.map((step, k) => [step, r.columns[name][k], stages[k]]);
    const intervals = name.startsWith("eval_") ? r.columns[name.replace("eval_", "interval_")] || [] : [];
    const color = COLORS[(several ? i : j) % COLORS.length];
    const style = { stroke: color, "stroke-dasharray": DASHES[several ? j % DASHES.length : 0] };
    return { r, name, points: points.filter((p) => p[1] !== null && (!log || p[1] > 0)), intervals, style };
  }));
  const limit = log && data.mismatch_limit > 0 ? [data.mismatch_limit] : [];
  const spans = lines.flatMap((l) => l.intervals.filter((x) => x && x[0] !== null && x[1] !== null).flat());
  let [low, high] = extent([...lines.flatMap((l) => l.points.map((p) => p[1])), ...spans, ...limit]);
  if (!Number.isFinite(low)) return;
  if (log) [low, high] = [low / 1.5, high * 1.5];
  else {
    const room = (high - low) * 0.05 || Math.abs(high) * 0.1 || 1;
    [low, high] = [low - room, high + room];
  }
  const [chart, y] = frame(title, low, high, log);
  for (const line of lines) drawLine(chart, line, y);
  if (limit.length) {
    const at = y.at(limit[0]);
    chart.append(svg("line", { class: "switch", x1: BOX.left, x2: BOX.width - BOX.right, y1: at, y2: at }));
    chart.append(svg("text", { x: BOX.left + 3, y: at + 11 }, "mismatch_limit"));
  }
  const style = (j) => (several ? { dash: DASHES[j % DASHES.length] } : { color: COLORS[j % COLORS.length] });
  const keys = present.map((name, j) => key(short(name), style(j)));
  addPanel(title, chart, keys.length > 1 ? keys : [], present);
}

function short(name) {
  return NAMES[name] ?? name.replace(/^eval_/, "");
}

function drawLine(chart, { r, name, points, intervals, style }, y) {
  const path = (list) => list.map(([x, v], i) => `${i ? "L" : "M"}${X.at(x).toFixed(1)} ${y.at(v).toFixed(1)}`).join("");
  const common = { fill: "none", ...style };
  const last = points.length ? points[points.length - 1][1] : "";
  const few = points.length < 30 || name.startsWith("mismatch");
  const raw = { ...common, d: path(points), "stroke-width": few ? 1.5 : 0.8, opacity: few ? 1 : 0.4 };
  chart.append(svg("path", { ...raw, "data-run": r.name, "data-series": name, "data-last": last }));
  if (!few) chart.append(svg("path", { ...common, d: path(smooth(points)), "stroke-width": 2 }));
  if (points.length === 1 || name.startsWith("eval_")) {
    for (const [x, v] of points) chart.append(svg("circle", { cx: X.at(x), cy: y.at(v), r: 2, fill: style.stroke }));
  }
  intervals.forEach((span, k) => {
    if (!span || span[0] === null || span[1] === null) return;
    const x = X.at(r.columns.step[k]);
    chart.append(svg("line", { stroke: style.stroke, x1: x, x2: x, y1: y.at(span[0]), y2: y.at(span[1]), opacity: 0.6 }));
  });
}

// Of the first run: a bar is the mean of neighbouring steps.
function drawPhases() {
  const { columns } = run;
  const phases = PHASES.filter((p) => columns["time_" + p]);
  if (!phases.length) return;
  const count = columns.step.length;
  const bars = range(0, Math.min(count, 80)).map((b, _, all) => {
    const rows = range(Math.floor((b * count) / all.length), Math.floor(((b + 1) * count) / all.length));
    const mean = (p) => rows.reduce((sum, i) => sum + (columns["time_" + p][i] || 0), 0) / rows.length;
    return { from: columns.step[rows[0]] - 0.5, to: columns.step[rows[rows.length - 1]] + 0.5, seconds: phases.map(mean) };
  });
  const high = Math.max(...bars.map((bar) => bar.seconds.reduce((a, b) => a + b, 0)), 1e-9);
  const title = `Seconds a step, by phase${several ? ": " + run.name : ""}`;
  const [chart, y] = frame(title, 0, high, false);
  for (const bar of bars) {
    let below = 0;
    bar.seconds.forEach((seconds, i) => {
      const [top, bottom] = [y.at(below + seconds), y.at(below)];
      const place = { x: X.at(bar.from), y: top, width: X.at(bar.to) - X.at(bar.from) + 0.2, height: bottom - top };
      chart.append(svg("rect", { ...place, fill: COLORS[i], "data-phase": phases[i] }));
      below += seconds;
    });
  }
  addPanel(title, chart, phases.map((p, i) => key(p, { color: COLORS[i] })), ["time_step"]);
}

function key(name, { color, dash }) {
  const mark = svg("svg", { viewBox: "0 0 24 6", width: 24, height: 6, "aria-hidden": "true" });
  const style = { "stroke-width": 3, stroke: color ?? "currentColor", "stroke-dasharray": dash ?? "none" };
  mark.append(svg("line", { x1: 0, x2: 24, y1: 3, y2: 3, ...style }));
  return el("span", { class: "key" }, mark, " " + name);
}

function addPanel(title, chart, keys, names) {
  const cursor = svg("line", { class: "cursor", y1: BOX.top, y2: BOX.height - BOX.bottom, visibility: "hidden" });
  chart.append(cursor);
  const values = el("p", { class: "values" });
  byId("panels").append(el("div", { class: "panel" }, el("h3", {}, title), values, chart, ...keys));
  panels.push({ names, cursor, values });
  chart.onpointermove = (event) => {
    const place = chart.getBoundingClientRect();
    showValues(X.back(((event.clientX - place.left) / place.width) * BOX.width));
  };
  chart.onpointerleave = () => showValues(null);
}

// Every panel says its values at the step that is pointed at in any of them; else at the last one that it has.
function showValues(x) {
  const step = x === null ? null : allSteps.reduce((best, s) => (Math.abs(s - x) < Math.abs(best - x) ? s : best));
  for (const { names, cursor, values } of panels) {
    cursor.setAttribute("visibility", step === null ? "hidden" : "visible");
    for (const end of ["x1", "x2"]) cursor.setAttribute(end, step === null ? 0 : X.at(step));
    const parts = data.runs.flatMap((r, i) => names.filter((name) => r.columns[name]).map((name) => {
      const place = step === null ? r.columns[name].findLastIndex((v) => v !== null) : r.columns.step.indexOf(step);
      const label = names.length > 1 ? `${short(name)} ` : "";
      const node = el("span", {}, `${label}${shown(r.columns[name][place])}`);
      if (several) node.style.color = COLORS[i % COLORS.length];
      return node;
    }));
    values.replaceChildren(step === null ? "last: " : `step ${step}: `, ...parts.flatMap((p, i) => (i ? [", ", p] : [p])));
  }
}
