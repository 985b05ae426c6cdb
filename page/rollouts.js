// Rollouts: a step's samples as a list, one of them whole, and histograms of the step.

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
  byId("filter").value = filter;
  byId("find").value = "";
  await showStep();
  byId("rollouts").scrollIntoView();
}

async function showStep() {
  const step = byId("step").value;
  const chosen = await load(step);
  if (byId("step").value !== step) return; // another one was chosen meanwhile
  dump = chosen;
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
  const texts = dump.samples.filter((s) => s.text !== null).length;
  const missing = texts < dump.samples.length ? `; ${texts} have their text here` : "";
  byId("count").replaceChildren(`${order.length} of ${dump.samples.length} samples${missing}`);
  select(0);
}

function mentions(sample, text) {
  const { id, prompt, gold } = dump.problems[sample.problem];
  const texts = [id, prompt, String(gold), sample.answer ?? "", sample.text ?? ""];
  return texts.some((t) => t.toLowerCase().includes(text.toLowerCase()));
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
  scrollTo(byId("list"), items[position]);
  byId("sample").replaceChildren(...sampleNodes(dump.samples[order[position]]));
}

function scrollTo(list, item) {
  const top = item.offsetTop - list.offsetTop;
  const isSeen = top >= list.scrollTop && top + item.offsetHeight <= list.scrollTop + list.clientHeight;
  if (!isSeen) list.scrollTop = top - list.clientHeight / 2;
}

function moveButton(name, move) {
  const button = el("button", { type: "button" }, name);
  button.onclick = () => select(position + move);
  return button;
}

function sampleNodes(s) {
  const problem = dump.problems[s.problem];
  const golds = Array.isArray(problem.gold) ? problem.gold : [problem.gold];
  const facts = [`reward ${shown(s.reward)}`, `advantage ${shown(s.advantage)}`, `${shown(s.length)} tokens`];
  facts.push(s.finish === "length" ? "cut off" : `ended: ${s.finish}`);
  if (s.mismatch !== null) facts.push(`mismatch k3 ${shown(s.mismatch)}`);
  const nodes = [
    el("p", {}, moveButton("previous", -1), " ", moveButton("next", 1)),
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
  const end = s.text.indexOf("</think>");
  const shaded = s.tokens ? [foldedNode("tokens, shaded by log-ratio", s.text.length, s.tokens.map(shadedNode), false)] : [];
  if (end < 0) {
    const name = s.text.includes("<think>") ? "response, its thinking not ended" : "response";
    return [foldedNode(name, s.text.length, [s.text], s.text.length < 2000 || name === "response"), ...shaded];
  }
  const thinking = s.text.slice(0, end + 8);
  const rest = el("pre", { class: "rest" }, s.text.slice(end + 8));
  return [foldedNode("thinking", thinking.length, [thinking], thinking.length < 500), rest, ...shaded];
}

function foldedNode(name, length, content, open) {
  const title = `${name}, ${length.toLocaleString("en")} characters`;
  const node = el("details", { class: "thinking" }, el("summary", {}, title), el("pre", {}, ...content));
  node.open = open;
  return node;
}

// The trainer's log-probability less the sampler's: the larger the difference, the darker. null: of older weights.
function shadedNode([text, d]) {
  const node = el("span", { title: d === null ? "sampled by older weights" : `log-ratio ${shown(d)}` }, text);
  const strength = Math.min(1, Math.abs(d ?? 0) * 2);
  if (strength > 0.005) node.style.background = `rgb(${d > 0 ? "40 160 80" : "220 70 50"} / ${strength})`;
  return node;
}

function answerNodes(answer) {
  if (answer === null || answer === undefined) return [el("span", { class: "faint" }, "none")];
  const text = String(answer);
  const nodes = [el("code", {}, text)];
  if (/[\\^_]/.test(text)) nodes.push(" ", formula(text, false, text));
  return nodes;
}

// A single dollar counts as in pandoc: no space inside, no digit behind, no backslash before.
const FORMULAS = new RegExp([
  /\$\$(?<dollars>.+?)\$\$/,
  /\\\[(?<brackets>.+?)\\\]/,
  /\\\((?<parentheses>.+?)\\\)/,
  /\\begin\{(?<environment>(?:align|equation|gather|cases|array|[a-z]?matrix)\*?)\}.+?\\end\{\k<environment>\}/,
  /(?<!\\)\$(?![\s$])(?<dollar>(?:\\.|[^$\n\\])+?)(?<!\s)\$(?!\d)/,
].map((pattern) => pattern.source).join("|"), "gs");

function withFormulas(text) {
  const nodes = [];
  let end = 0;
  for (const match of text.matchAll(FORMULAS)) {
    const [whole, { dollars, brackets, parentheses, environment, dollar }] = [match[0], match.groups];
    const tex = environment ? whole : dollars ?? brackets ?? parentheses ?? dollar;
    nodes.push(text.slice(end, match.index), formula(tex, Boolean(dollars ?? brackets ?? environment), whole));
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
  const inList = event.target === byId("list"); // elsewhere up and down scroll
  const move = { ArrowRight: 1, ArrowLeft: -1, ...(inList && { ArrowDown: 1, ArrowUp: -1 }) }[event.key];
  if (!move || !dump || !(inList || inSight(byId("browser")))) return;
  event.preventDefault();
  select(position + move);
});

function inSight(node) {
  const { top, bottom } = node.getBoundingClientRect();
  return top < innerHeight / 2 && bottom > innerHeight / 4;
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
  const [chart, y] = axes(title, 0, most, false);
  const width = (BOX.width - BOX.left - BOX.right) / bins;
  counts.forEach((bars, j) => bars.forEach((n, b) => {
    const thin = (width - 1) / series.length;
    const place = { x: BOX.left + b * width + j * thin, y: y.at(n), width: thin, height: y.at(0) - y.at(n) };
    chart.append(svg("rect", { ...place, fill: series[j][2] }));
  }));
  for (const at of [0, high / 2, high]) {
    const x = BOX.left + (at / high) * (BOX.width - BOX.left - BOX.right);
    chart.append(svg("text", { x, y: BOX.height - 5, "text-anchor": at === high ? "end" : "middle" }, shown(at)));
  }
  return el("div", { class: "panel" }, el("h3", {}, title), chart, ...series.map(([name, , color]) => key(name, { color })));
}

