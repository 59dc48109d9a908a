"use strict";
// The token explorer. Corpus text is data: it enters the page through textContent only.
// One view at a time is decoded; only the blocks of text near the visible part are in the document.

const NONE = 65535, BLOCK = 160, LONGEST = 420, LINE = 21;
const $ = (id) => document.getElementById(id);
const make = (tag, className, text) => {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
};
const number = (x) => (x === null ? "–" : x.toFixed(2).replace("-", "−"));
const signed = (x) => (x === null ? "–" : (x > 0 ? "+" : "") + number(x));

// --- theme ---

$("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});

// --- data ---

const page = JSON.parse($("explorer-data").textContent);
const pieces = page.pieces;
const TYPES = { piece: Uint32Array, ref: Uint16Array, nll: Uint16Array, keep: Uint8Array, cls: Uint8Array, weight: Float32Array };

async function column(text, type) {
  const raw = Uint8Array.fromBase64 ? Uint8Array.fromBase64(text) : Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([raw]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new type(await new Response(stream).arrayBuffer());
}

async function decode(view) {
  const names = Object.keys(view.columns);
  const arrays = await Promise.all(names.map((name) => column(view.columns[name], TYPES[name])));
  const { docs } = view, all = view.frames.map((_, i) => i);
  const decoded = { ...view, ...Object.fromEntries(names.map((name, i) => [name, arrays[i]])), docs: [] };
  let start = 0, values = 0;
  docs.tokens.forEach((count, i) => {
    const frames = docs.frames ? docs.frames[i] : all;
    decoded.docs.push({ index: i, name: docs.name[i], source: docs.source[i], row: docs.row[i], position: docs.position[i],
      start, end: start + count, count, frames, values });
    start += count;
    values += count * frames.length;
  });
  decoded.uniform = decoded.docs.every((d) => d.frames.length === view.frames.length);
  for (const doc of decoded.docs) doc.blocks = cut(decoded, doc);
  return decoded;
}

// Blocks of lines: they end at a newline where there is one, so that nobody sees where one ends.
function cut(view, doc) {
  const blocks = [];
  let from = doc.start, lines = 0, chars = 0;
  for (let i = doc.start; i < doc.end; i++) {
    const text = pieces[view.piece[i]], breaks = text.includes("\n");
    chars += text.length;
    if (breaks) lines++;
    if ((breaks && i - from >= BLOCK) || i - from >= LONGEST || i === doc.end - 1) {
      blocks.push({ doc, from, to: i + 1, lines, chars, first: from === doc.start });
      from = i + 1;
      lines = chars = 0;
    }
  }
  return blocks;
}

// --- numbers of a token ---

const state = { view: null, frame: 0, every: false, mode: "", current: -1, query: "" };

// Where a document's values at the chosen frame begin; its last frame if every step is shown. -1: not logged then.
function frameOf(doc) {
  const k = state.every ? doc.frames.length - 1 : doc.frames.indexOf(state.frame);
  return k < 0 ? -1 : doc.values + k * doc.count - doc.start;
}
const nats = (array, i) => (array === undefined || array[i] === NONE ? null : array[i] / 100);

function valuesOf(doc, i) {
  const { view } = state, base = frameOf(doc);
  const nll = base < 0 ? null : nats(view.nll, base + i), ref = nats(view.ref, i);
  return {
    nll, ref,
    excess: nll === null || ref === null ? null : nll - ref,
    kept: nll === null || !view.keep ? null : view.keep[base + i],
    cls: !view.cls || view.cls[i] === 255 ? null : view.cls[i],
    weight: !view.weight || Number.isNaN(view.weight[i]) ? null : view.weight[i],
  };
}

const history = (doc, i) => doc.frames.map((_, k) => nats(state.view.nll, doc.values + k * doc.count + i - doc.start));

// The rise of the least-squares line through a token's nll, from its first frame to its last: the paper's delta.
function trajectory(doc, i) {
  const y = history(doc, i), n = y.length - 1;
  if (n < 1 || y.includes(null)) return null;
  const mean = y.reduce((a, b) => a + b) / (n + 1);
  let sxy = 0, sxx = 0;
  y.forEach((v, k) => { sxy += (k - n / 2) * (v - mean); sxx += (k - n / 2) ** 2; });
  return sxy / sxx * n;
}

// --- colour scales: the class of a token, and the legend ---

const NATS = [0.25, 0.75, 1.5, 2.5, 3.5, 5, 7], SIGNED = [-2, -1, -0.5, -0.1, 0.1, 0.5, 1, 2], MOVED = [-2, -1, -0.5, -0.2, 0.2, 0.5, 1, 2];
const bin = (edges, x) => edges.reduce((n, edge) => n + (x >= edge), 0);
const scaled = (prefix, edges, value) => ({ prefix, edges, value, style: (x) => (x === null ? "na" : prefix + bin(edges, x)) });
const WEIGHTS = [["x1", "below 0"], ["k0", "0"], ["n3", "to 1"], ["n6", "1"], ["k1", "above 1"]];
const weightBin = (x) => (x < 0 ? 0 : x === 0 ? 1 : x < 1 ? 2 : x === 1 ? 3 : 4);
const MODES = {
  kept: { label: "kept", value: (doc, i) => valuesOf(doc, i).kept, style: (x) => (x === null ? "na" : "k" + x),
    names: () => [["k1", "kept"], ["k0", "dropped"]], needs: (v) => v.keep },
  excess: { label: "excess (student − reference)", ...scaled("x", SIGNED, (doc, i) => valuesOf(doc, i).excess), needs: (v) => v.ref },
  nll: { label: "student nll", ...scaled("n", NATS, (doc, i) => valuesOf(doc, i).nll), needs: () => true },
  ref: { label: "reference nll", ...scaled("n", NATS, (doc, i) => valuesOf(doc, i).ref), needs: (v) => v.ref },
  cls: { label: "class", value: (doc, i) => valuesOf(doc, i).cls, style: (x) => (x === null ? "na" : "c" + x),
    names: (v) => v.classes.map((name, i) => ["c" + i, arrow(name)]), needs: (v) => v.cls },
  weight: { label: "weight", value: (doc, i) => valuesOf(doc, i).weight, style: (x) => (x === null ? "na" : WEIGHTS[weightBin(x)][0]),
    names: () => WEIGHTS, needs: (v) => v.weight },
  trajectory: { label: "trajectory (change over checkpoints)", ...scaled("x", MOVED, trajectory),
    needs: (v) => v.docs.some((d) => d.frames.length > 2) },
};
const arrow = (name) => name.replace("->", "→");

function legend() {
  const mode = MODES[state.mode], box = $("legend");
  box.replaceChildren();
  if (mode.edges) {
    box.append(make("span", "", `${mode.label}, nats`));
    const scale = make("div", "scale");
    for (let i = 0; i <= mode.edges.length; i++) {
      const low = i ? mode.edges[i - 1] : null, high = mode.edges[i];
      const text = low === null ? "< " + high : high === undefined ? "≥ " + low : low === -high ? "±" + high : String(low);
      scale.append(make("span", mode.prefix + i, text.replace("-", "−")));
    }
    box.append(scale);
  } else for (const [style, name] of mode.names(state.view)) box.append(make("span", "t " + style, ` ${name} `));
  box.append(make("span", "t na", "no value"));
}

// --- which documents, in which order ---

const SORTS = {
  text: ["order of the corpus", null],
  excessDown: ["mean excess, highest first", (s) => -s.excess],
  excessUp: ["mean excess, lowest first", (s) => s.excess],
  nllDown: ["mean student nll, highest first", (s) => -s.nll],
  keptDown: ["share kept, highest first", (s) => -s.kept],
};

function summary(doc) {
  let nll = 0, excess = 0, kept = 0, n = 0, m = 0;
  const base = frameOf(doc), { view } = state;
  if (base >= 0) for (let i = doc.start; i < doc.end; i++) {
    const cents = view.nll[base + i];
    if (cents === NONE) continue;
    n++;
    nll += cents;
    if (view.keep) kept += view.keep[base + i];
    if (view.ref && view.ref[i] !== NONE) { m++; excess += cents - view.ref[i]; }
  }
  return { nll: n ? nll / n / 100 : null, excess: m ? excess / m / 100 : null, kept: n && view.keep ? kept / n : null, tokens: n };
}

// Half-open ranges of tokens that a search found in a document; null where nothing is searched for.
function found(doc) {
  if (!state.query) return null;
  if (doc.searched === state.query) return doc.hits;
  const { view } = state, starts = [];
  let text = "";
  for (let i = doc.start; i < doc.end; i++) {
    starts.push(text.length);
    text += pieces[view.piece[i]].toLowerCase();
  }
  doc.hits = new Set();
  doc.searched = state.query;
  let i = 0;
  for (let at = text.indexOf(state.query); at >= 0; at = text.indexOf(state.query, at + state.query.length)) {
    while (i + 1 < starts.length && starts[i + 1] <= at) i++;
    for (let j = i; j < starts.length && starts[j] < at + state.query.length; j++) doc.hits.add(doc.start + j);
  }
  return doc.hits;
}

// Whether a token passes the filters on kept and class.
function passes(doc, i) {
  const kept = $("kept").value, cls = $("class").value;
  if (!kept && !cls) return true;
  const v = valuesOf(doc, i);
  return (!kept || v.kept === Number(kept)) && (!cls || v.cls === Number(cls));
}

function selected() {
  const source = $("source").value, key = SORTS[$("sort").value][1], filtered = $("kept").value || $("class").value;
  let docs = state.view.docs.filter((doc) => {
    if (frameOf(doc) < 0 || (source && doc.source !== Number(source))) return false;
    if (state.query && !found(doc).size) return false;
    if (!filtered) return true;
    for (let i = doc.start; i < doc.end; i++) if (passes(doc, i)) return true;
    return false;
  });
  if (key) {
    const ranks = new Map(docs.map((d) => [d, key(summary(d))]));
    docs = docs.filter((d) => !Number.isNaN(ranks.get(d))).sort((a, b) => ranks.get(a) - ranks.get(b));
  }
  return docs;
}

// --- the sheet: absolutely placed blocks, of which only the near ones exist ---

const sheet = { blocks: [], heights: [], tops: [], live: new Map() };

function rebuild() {
  const docs = selected(), { view } = state;
  sheet.blocks = docs.flatMap((doc) => doc.blocks);
  const perLine = Math.max(20, (pane.clientWidth - 32) / 7.9);
  sheet.heights = sheet.blocks.map((b) => (b.first ? 56 : 0) + LINE * Math.max(1, b.lines + b.chars / perLine * 0.6));
  for (const element of sheet.live.values()) element.remove();
  sheet.live.clear();
  place();
  const tokens = docs.reduce((n, d) => n + d.count, 0);
  $("count").textContent = `${docs.length.toLocaleString("en")} of ${view.docs.length.toLocaleString("en")} passages, ` +
    `${tokens.toLocaleString("en")} tokens`;
  $("empty").hidden = docs.length > 0;
  draw();
}

function place() {
  let top = 0;
  sheet.tops = sheet.heights.map((height) => { const here = top; top += height; return here; });
  $("sheet").style.height = `${top}px`;
}

function blockAt(y) {
  let low = 0, high = sheet.tops.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (sheet.tops[middle] <= y) low = middle; else high = middle - 1;
  }
  return low;
}

function draw() {
  const { blocks, heights, live } = sheet;
  if (!blocks.length) return;
  for (let pass = 0; pass < 3; pass++) {
    const first = blockAt(pane.scrollTop - 400), last = blockAt(pane.scrollTop + pane.clientHeight + 400);
    const anchor = blockAt(pane.scrollTop), offset = pane.scrollTop - sheet.tops[anchor];
    for (const [index, element] of live) if (index < first || index > last) { element.remove(); live.delete(index); }
    const fresh = [];
    for (let i = first; i <= last; i++) if (!live.has(i)) { live.set(i, drawn(blocks[i])); fresh.push(i); }
    $("sheet").append(...fresh.map((i) => live.get(i)));
    let moved = false;
    for (const i of fresh) {
      const height = live.get(i).offsetHeight;
      if (Math.abs(height - heights[i]) > 0.5) { heights[i] = height; moved = true; }
    }
    if (moved) {
      place();
      const wanted = sheet.tops[anchor] + offset;
      if (Math.abs(wanted - pane.scrollTop) > 1) pane.scrollTop = wanted;
    }
    for (const [index, element] of live) element.style.top = `${sheet.tops[index]}px`;
    if (!moved) return;
  }
}

function drawn(block) {
  const { doc } = block, element = make("div", "block");
  if (block.first) element.append(head(doc));
  for (let i = block.from; i < block.to; i++) {
    const span = make("span", styleOf(doc, i), pieces[state.view.piece[i]]);
    span.token = i;
    span.doc = doc;
    if (i === state.current) span.id = "here";
    element.append(span);
  }
  return element;
}

function head(doc) {
  const s = summary(doc), made = make("div", "head", `${doc.name} `);
  const said = [state.view.sources[doc.source], `row ${doc.row.toLocaleString("en")}`];
  if (s.excess !== null) said.push(`mean excess ${signed(s.excess)}`);
  else if (s.nll !== null) said.push(`mean nll ${number(s.nll)}`);
  if (s.kept !== null) said.push(`kept ${Math.round(100 * s.kept)} %`);
  made.append(make("span", "", said.join(" · ")));
  return made;
}

function styleOf(doc, i) {
  const mode = MODES[state.mode];
  let style = "t " + mode.style(mode.value(doc, i));
  if (!passes(doc, i)) style += " off";
  if (state.query && found(doc).has(i)) style += " hit";
  return i === state.current ? style + " here" : style;
}

function recolour() {
  for (const element of sheet.live.values())
    for (const child of element.children) {
      if (child.doc) child.className = styleOf(child.doc, child.token);
      else child.replaceWith(head(element.lastChild.doc));
    }
}

// --- one token: the card beside the text ---

function show(doc, i) {
  const v = valuesOf(doc, i), { view } = state, at = doc.position + i - doc.start, card = $("card");
  const rows = [["student nll", number(v.nll)]];
  if (view.ref) rows.push(["reference nll", number(v.ref)], ["excess", signed(v.excess)]);
  if (view.keep) rows.push(["", v.kept === null ? "no target" : v.kept ? "kept" : "dropped"]);
  if (view.cls) rows.push(["class", v.cls === null ? "–" : arrow(view.classes[v.cls])]);
  if (view.weight) rows.push(["weight", v.weight === null ? "no target" : String(Math.round(v.weight * 1e4) / 1e4)]);
  if (doc.frames.length > 2) rows.push(["trajectory", signed(trajectory(doc, i))]);
  rows.push(["row, position", `${doc.row + Math.floor(at / view.length)}, ${at % view.length}`], ["source", view.sources[doc.source]]);
  const list = make("dl");
  for (const [name, value] of rows) list.append(make("dt", "", name), make("dd", "", value));
  card.replaceChildren(make("p", "word", pieces[view.piece[i]].replace(/\n/g, "↵").replace(/\t/g, "⇥") || "(part of the character before)"), list);
  card.append(doc.frames.length > 1 ? spark(doc, i, v.ref) : make("p", "note", "Logged at one step."));
}

function svg(tag, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function spark(doc, i, ref) {
  const values = history(doc, i), top = Math.max(1, ref || 0, ...values), last = values.length - 1;
  const x = (k) => 4 + 180 * (last ? k / last : 0.5), y = (v) => 70 - 58 * v / top;
  const made = svg("svg", { viewBox: "0 0 212 88", role: "img", "aria-label": "nll over checkpoints" });
  const known = values.map((v, k) => [v, k]).filter(([v]) => v !== null);
  made.append(svg("path", { class: "spark-ref", d: "M4 70H184" }));
  if (ref !== null) {
    made.append(svg("path", { class: "spark-ref", d: `M4 ${y(ref)}H184` }), svg("text", { x: 188, y: y(ref) + 3 }, "ref"));
  }
  made.append(svg("polyline", { class: "spark", points: known.map(([v, k]) => `${x(k)},${y(v)}`).join(" ") }));
  const k = state.every ? last : doc.frames.indexOf(state.frame);
  if (k >= 0 && values[k] !== null) made.append(svg("circle", { class: "spark-now", cx: x(k), cy: y(values[k]), r: 3.5 }));
  if (known.length) {
    const [v, end] = known[known.length - 1];
    if (ref === null || Math.abs(y(v) - y(ref)) > 9) made.append(svg("text", { x: x(end) + 5, y: y(v) + 3 }, number(v)));
  }
  made.append(svg("text", { x: 4, y: 84 }, state.view.frames[doc.frames[0]].label),
    svg("text", { x: 184, y: 84, "text-anchor": "end" }, state.view.frames[doc.frames[last]].label));
  return made;
}

// --- the keyboard ---

function focusToken(index) {
  const block = sheet.blocks.findIndex((b) => index >= b.from && index < b.to);
  if (block < 0) return;
  state.current = index;
  const top = sheet.tops[block];
  if (!sheet.live.has(block)) { pane.scrollTop = Math.max(0, top - 80); draw(); }
  recolour();
  for (const element of sheet.live.values()) for (const child of element.children) if (child.token === index) here(child);
}

function here(span) {
  const old = $("here");
  if (old) old.removeAttribute("id");
  span.id = "here";
  span.scrollIntoView({ block: "nearest" });
  pane.setAttribute("aria-activedescendant", "here");
  show(span.doc, span.token);
}

// The next token, in the order shown, that passes the filters.
function step(direction, accept) {
  let block = sheet.blocks.findIndex((b) => state.current >= b.from && state.current < b.to);
  if (block < 0) {
    const start = sheet.blocks[blockAt(pane.scrollTop)];
    return start ? start.from : -1;
  }
  let i = state.current + direction;
  for (;;) {
    const b = sheet.blocks[block];
    if (i < b.from || i >= b.to) {
      block += direction;
      if (!sheet.blocks[block]) return state.current;
      i = direction > 0 ? sheet.blocks[block].from : sheet.blocks[block].to - 1;
      continue;
    }
    if (pieces[state.view.piece[i]] && accept(b.doc, i)) return i;
    i += direction;
  }
}

function onKey(event) {
  const filtered = $("kept").value || $("class").value;
  const accept = (doc, i) => (state.query && event.shiftKey ? found(doc).has(i) : !filtered || passes(doc, i));
  const direction = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (direction) focusToken(step(direction, accept));
  else if (event.key === "[" || event.key === "]") {
    $("step").value = Number($("step").value) + (event.key === "]" ? 1 : -1);
    slide();
  } else return;
  event.preventDefault();
}

// --- controls ---

function options(select, pairs) {
  select.replaceChildren(...pairs.map(([value, name]) => { const o = make("option", "", name); o.value = value; return o; }));
  select.closest("label").hidden = pairs.length < 2;
}

function tellStep() {
  const { view } = state, frame = view.frames[state.frame];
  const seen = frame.seen === null || frame.seen === undefined ? "" : `, ${frame.seen.toLocaleString("en")} tokens seen`;
  $("frame").textContent = state.every ? `every step, ${view.frames.length} in all` : frame.label + seen;
}

function slide() {
  state.frame = Number($("step").value);
  state.every = $("every").checked = false;
  tellStep();
  if (state.view.uniform && !$("kept").value) recolour(); else rebuild();
  if (state.current >= 0) refresh();
}

function refresh() {
  const span = $("here");
  if (span) show(span.doc, span.token);
}

async function choose(index) {
  const view = await decode(page.views[index]);
  Object.assign(state, { view, frame: view.frames.length - 1, every: !view.uniform, current: -1 });
  $("note").textContent = view.note;
  $("step").max = view.frames.length - 1;
  $("step").value = state.frame;
  $("step").closest("label").hidden = view.frames.length < 2;
  $("every").checked = state.every;
  $("every").closest("label").hidden = view.uniform;
  const modes = Object.entries(MODES).filter(([, mode]) => mode.needs(view));
  options($("mode"), modes.map(([key, mode]) => [key, mode.label]));
  state.mode = modes.some(([key]) => key === state.mode) ? state.mode : modes[0][0];
  $("mode").value = state.mode;
  options($("source"), [["", "all"], ...view.sources.map((name, i) => [i, name])]);
  $("source").closest("label").hidden = view.sources.length < 2;
  options($("kept"), view.keep ? [["", "all tokens"], ["1", "kept only"], ["0", "dropped only"]] : [["", "all tokens"]]);
  options($("class"), [["", "all"], ...(view.cls ? view.classes.map((name, i) => [i, arrow(name)]) : [])]);
  const possible = Object.entries(SORTS).filter(([key]) => (view.ref || !key.startsWith("excess")) && (view.keep || key !== "keptDown"));
  options($("sort"), possible.map(([key, [name]]) => [key, name]));
  tellStep();
  legend();
  pane.scrollTop = 0;
  rebuild();
  document.documentElement.dataset.explorer = "ready";
}

const pane = $("pane");

function listen() {
  const later = (work, wait) => { let timer; return () => { clearTimeout(timer); timer = setTimeout(work, wait); }; };
  const again = () => { pane.scrollTop = 0; rebuild(); };
  options($("view"), page.views.map((view, i) => [i, view.name]));
  $("view").addEventListener("change", () => choose(Number($("view").value)));
  $("mode").addEventListener("change", () => { state.mode = $("mode").value; legend(); recolour(); });
  for (const id of ["source", "kept", "class", "sort"]) $(id).addEventListener("change", again);
  $("search").addEventListener("input", later(() => { state.query = $("search").value.toLowerCase(); again(); }, 120));
  $("step").addEventListener("input", slide);
  $("step").addEventListener("change", () => { if ($("sort").value !== "text" || $("kept").value) rebuild(); });
  $("every").addEventListener("change", () => { state.every = $("every").checked; tellStep(); rebuild(); });
  let waiting = false;
  pane.addEventListener("scroll", () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; draw(); });
  }, { passive: true });
  pane.addEventListener("pointerover", (event) => { if (event.target.doc) show(event.target.doc, event.target.token); });
  pane.addEventListener("click", (event) => { if (event.target.doc) focusToken(event.target.token); });
  pane.addEventListener("keydown", onKey);
  let width = pane.clientWidth;
  new ResizeObserver(later(() => { if (pane.clientWidth !== width) { width = pane.clientWidth; rebuild(); } }, 150)).observe(pane);
}

if (page.views.length) {
  if (typeof DecompressionStream === "undefined") $("count").textContent = "This browser is too old for the token explorer.";
  else { listen(); choose(0); }
}
