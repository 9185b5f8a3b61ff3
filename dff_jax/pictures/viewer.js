"use strict";
// Everything of a page: `report.stacks` holds images as data URIs, maps as PNG files whose red and green are a number.
const report = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const state = { stack: 0, frame: 0, stage: 0, at: null, loaded: null };

const make = (tag, text, attributes = {}) => {
  const node = document.createElement(tag);
  if (text) node.textContent = text;
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
};

const loadImage = (uri) => new Promise((resolve, reject) => {
  const image = new Image();
  image.onload = () => resolve(image);
  image.onerror = () => reject(new Error("an image of this page is damaged"));
  image.src = uri;
});

// A map: 0 has no value, 1..4095 run from `low` to `high`.
async function decode(map) {
  if (!map) return null;
  const image = await loadImage(map.png);
  const canvas = make("canvas");
  [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
  const context = canvas.getContext("2d", { willReadFrequently: true, colorSpace: "srgb" });
  context.drawImage(image, 0, 0);
  const bytes = context.getImageData(0, 0, canvas.width, canvas.height).data;
  const values = new Float32Array(canvas.width * canvas.height);
  for (let i = 0; i < values.length; i++) {
    const code = bytes[4 * i] * 16 + (bytes[4 * i + 1] >> 4);
    values[i] = code ? map.low + (map.high - map.low) * (code - 1) / 4094 : NaN;
  }
  return { values, width: canvas.width, height: canvas.height };
}

async function load(stack) {
  const [frames, stages, truth, confidence, sharp] = await Promise.all([
    Promise.all(stack.frames.map((frame) => loadImage(frame.image))), Promise.all(stack.stages.map((one) => decode(one.map))),
    decode(stack.truth), decode(stack.confidence), loadImage(stack.sharp),
  ]);
  return { frames, stages, truth, confidence, sharp };
}

function paint(canvas, map, low, high, colours) {
  [canvas.width, canvas.height] = [map.width, map.height];
  const context = canvas.getContext("2d"), image = context.createImageData(map.width, map.height);
  for (let i = 0; i < map.values.length; i++) {
    const value = map.values[i];
    const k = Number.isNaN(value) ? -1 : Math.max(0, Math.min(255, Math.floor(256 * (value - low) / (high - low))));
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = k < 0 ? 96 : colours[3 * k + c];
    image.data[4 * i + 3] = 255;
  }
  context.putImageData(image, 0, 0);
}

const show = (canvas, image) => {
  [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
  canvas.getContext("2d").drawImage(image, 0, 0);
};

// Depth maps are in q, in which blur is linear; people read the unit of the stack.
const inUnit = (q) => report.unit !== "metre" ? report.sign * q : Number.isNaN(q) ? NaN : q > 1e-4 ? 1 / q : Infinity;
const number = (x) => x === null || Number.isNaN(x) ? "-" : !Number.isFinite(x) ? "∞" : String(Number(x.toPrecision(report.digits)));

function panels(stack) {
  const given = [["frames", ""], ["depth", ""]];
  if (stack.truth) given.push(["error", ""], ["truth", ""]);
  given.push(["confidence", ""], ["sharp", "all in focus"]);
  $("panels").replaceChildren(...given.map(([id, caption]) => {
    const figure = make("figure"), canvas = make("canvas", "", { id: `canvas-${id}` });
    const below = make("figcaption", "", { id: `caption-${id}` });
    below.append(make("span", caption));
    figure.append(canvas, below);
    canvas.addEventListener("pointermove", (event) => {
      const box = canvas.getBoundingClientRect();
      state.at = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
      read();
    });
    return figure;
  }));
}

function caption(id, text, low, high, colours) {
  const node = $(`caption-${id}`), bar = make("span", "", { class: "bar" }), strip = make("i");
  const stops = [...Array(17).keys()].map((i) => {
    const k = Math.min(255, i * 16);
    return `rgb(${colours[3 * k]} ${colours[3 * k + 1]} ${colours[3 * k + 2]})`;
  });
  strip.style.background = `linear-gradient(to right, ${stops.join(", ")})`;
  bar.append(make("span", number(low)), strip, make("span", number(high)));
  node.replaceChildren(make("span", text), bar);
}

function difference(stage, truth) {
  const values = new Float32Array(stage.values.length);
  for (let i = 0; i < values.length; i++) values[i] = Math.abs(inUnit(stage.values[i]) - inUnit(truth.values[i]));
  return { ...stage, values };
}

function draw() {
  const stack = report.stacks[state.stack], { frames, stages, truth, confidence, sharp } = state.loaded;
  const { depth: colours, error: hot, confidence: cool } = report.colours;
  const frame = stack.frames[state.frame], stage = stages[state.stage];
  show($("canvas-frames"), frames[state.frame]);
  $("caption-frames").firstChild.textContent = `${frame.name}, focus ${number(frame.focus)}${report.symbol}`;
  paint($("canvas-depth"), stage, stack.low, stack.high, colours);
  caption("depth", `depth: ${stack.stages[state.stage].name}`, inUnit(stack.low), inUnit(stack.high), colours);
  if (truth) {
    state.error = difference(stage, truth);
    paint($("canvas-error"), state.error, 0, stack.error, hot);
    caption("error", "error", 0, stack.error, hot);
    paint($("canvas-truth"), truth, stack.low, stack.high, colours);
    caption("truth", "truth (grey: none)", inUnit(stack.low), inUnit(stack.high), colours);
  }
  paint($("canvas-confidence"), confidence, 0, 1, cool);
  caption("confidence", "confidence", 0, 1, cool);
  show($("canvas-sharp"), sharp);
  $("frame-says").textContent = `${state.frame + 1} of ${frames.length}: ${frame.name}`;
  const mae = stack.stages[state.stage].mae;
  const says = stack.stages[state.stage].name + (mae == null ? "" : `, MAE ${number(mae)}${report.symbol}`);
  $("stage-says").textContent = says;
  read();
}

function read() {
  if (!state.at || !state.loaded) return;
  const stack = report.stacks[state.stack], { stages, truth, confidence } = state.loaded, stage = stages[state.stage];
  const at = (map) => {
    const x = Math.min(map.width - 1, Math.max(0, Math.floor(state.at[0] * map.width)));
    const y = Math.min(map.height - 1, Math.max(0, Math.floor(state.at[1] * map.height)));
    return map.values[y * map.width + x];
  };
  const [height, width] = stack.size;
  const parts = [`x ${Math.floor(state.at[0] * width)}, y ${Math.floor(state.at[1] * height)}`];
  parts.push(`depth ${number(inUnit(at(stage)))}${report.symbol}`);
  if (truth) parts.push(`truth ${number(inUnit(at(truth)))}${report.symbol}`, `error ${number(at(state.error))}${report.symbol}`);
  parts.push(`confidence ${at(confidence).toFixed(2)}`);
  $("readout").textContent = parts.join("   ");
}

async function choose(index) {
  state.stack = index;
  const stack = report.stacks[index];
  [...$("chooser").children].forEach((node, i) => node.setAttribute("aria-current", String(i === index)));
  $("name").textContent = stack.name;
  $("facts").textContent = stack.facts;
  $("stack").dataset.ready = "no";
  const loaded = await load(stack);
  if (state.stack !== index) return; // another one was chosen meanwhile
  state.loaded = loaded;
  state.frame = Math.floor(stack.frames.length / 2);
  state.stage = stack.stages.length - 1;
  $("frame").max = stack.frames.length - 1;
  $("stage").max = stack.stages.length - 1;
  $("frame").value = state.frame;
  $("stage").value = state.stage;
  panels(stack);
  draw();
  $("stack").dataset.ready = "yes";
  history.replaceState(null, "", `#${encodeURIComponent(stack.name)}`);
}

function move(what, by) {
  const stack = report.stacks[state.stack];
  const count = what === "frame" ? stack.frames.length : stack.stages.length;
  state[what] = Math.max(0, Math.min(count - 1, state[what] + by));
  $(what).value = state[what];
  draw();
}

function tables() {
  for (const table of report.tables) {
    $("tables").append(make("h2", table.title));
    if (table.note) $("tables").append(make("p", table.note, { class: "hint" }));
    if (table.image) $("tables").append(make("img", "", { src: table.image, alt: table.title }));
    if (!table.columns) continue;
    const node = make("table"), head = make("tr");
    table.columns.forEach((column) => head.append(make("th", column)));
    node.append(head);
    for (const row of table.rows) {
      const line = make("tr");
      row.forEach((cell) => line.append(make("td", typeof cell === "number" ? number(cell) : cell ?? "-")));
      const index = report.stacks.findIndex((stack) => table.stacks && stack.name === row[0]);
      if (index >= 0 && report.stacks.length > 1) {
        line.dataset.stack = index;
        line.addEventListener("click", () => { choose(index); scrollTo({ top: 0, behavior: "smooth" }); });
      }
      node.append(line);
    }
    $("tables").append(node);
  }
}

for (const what of ["frame", "stage"]) {
  $(what).addEventListener("input", () => { state[what] = Number($(what).value); draw(); });
}
addEventListener("keydown", (event) => {
  if (event.target.tagName === "INPUT" || event.ctrlKey || event.metaKey || event.altKey || !state.loaded) return;
  const frame = { ArrowLeft: -1, ArrowRight: 1 }[event.key], stage = { ArrowUp: 1, ArrowDown: -1 }[event.key];
  const stack = { n: 1, p: -1 }[event.key];
  if (frame) move("frame", frame);
  else if (stage) move("stage", stage);
  else if (stack) choose((state.stack + stack + report.stacks.length) % report.stacks.length);
  else return;
  event.preventDefault();
});

for (const name of Object.keys(report.colours)) {
  report.colours[name] = Uint8Array.from(atob(report.colours[name]), (c) => c.charCodeAt(0));
}
$("title").textContent = report.title;
$("about").textContent = report.about;
if (report.stacks.length > 1) {
  report.stacks.forEach((stack, i) => {
    const button = make("button", "", { type: "button" });
    button.append(make("img", "", { src: stack.thumbnail, alt: "" }), make("span", stack.label));
    button.addEventListener("click", () => choose(i));
    $("chooser").append(button);
  });
}
tables();
const wanted = decodeURIComponent(location.hash.slice(1));
choose(Math.max(0, report.stacks.findIndex((stack) => stack.name === wanted))).catch((error) => {
  $("readout").textContent = `This page cannot be shown: ${error.message}`;
});
