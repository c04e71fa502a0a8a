// What is seen: the stream, its tensors, and the network's answers. The work is done in worker.js.

const SIDE = 8, INK = 16, SAMPLES = 5; // the network's images: 8 by 8 pixels, from 0 to 16
const COLORS = { negative: [31, 95, 191], positive: [194, 86, 43], zero: [246, 245, 241] };
const $ = (id) => document.getElementById(id);

let worker = null, images = "", total = 0, rows = new Map();

// ---- Fetching

async function begin() {
  const manifest = await (await fetch("streams.json")).json();
  images = manifest.images;
  $("size-of-decoder").textContent = `${Math.round(manifest.decoder_bytes / 1000)} kB`;
  for (const { file, title } of manifest.streams) $("streams").add(new Option(title, file));
  const asked = new URLSearchParams(location.search); // ?streams=plain.nnr&rate=0
  for (const id of ["streams", "rate"]) if (asked.has(id)) $(id).value = asked.get(id);
  $("controls").addEventListener("submit", (event) => {
    event.preventDefault();
    start({ address: $("streams").value });
  });
  $("file").addEventListener("change", () => {
    if ($("file").files.length) start({ file: $("file").files[0] });
  });
  await offerSamples();
  start({ address: $("streams").value });
}

function start(source) {
  worker?.terminate();
  rows = new Map();
  total = 0;
  $("tensors").querySelector("tbody").replaceChildren();
  $("layers").querySelector("tbody").replaceChildren();
  $("layers").hidden = true;
  for (const id of ["bytes", "memory", "first", "speed", "multiplications", "accuracy"]) show(id, "–");
  show("count", "");
  $("received").style.width = "0";
  $("bar").querySelectorAll("i").forEach((mark) => mark.remove());
  say("Fetching …");
  setState("fetching");
  showAnswers(null);
  worker = new Worker("worker.js", { type: "module" });
  worker.onmessage = ({ data }) => RECEIVERS[data.kind](data);
  worker.onerror = (error) => RECEIVERS.failed({ text: error.message });
  const more = { rate: Number($("rate").value), factorized: $("factorized").checked, images };
  worker.postMessage({ kind: "start", ...source, ...more });
  sendDrawing();
}

const RECEIVERS = {
  opened({ size }) { total = size; },
  progress({ bytes, decodingTime }) {
    const percent = total ? Math.min(100, (100 * bytes) / total) : 0;
    $("received").style.width = `${percent}%`;
    $("bar").setAttribute("aria-valuenow", Math.round(percent));
    show("bytes", total ? `${kilobytes(bytes)} of ${kilobytes(total)}` : kilobytes(bytes));
    showSpeed(decodingTime);
  },
  tensor(tensor) {
    if (!rows.size) show("first", `${milliseconds(tensor.milliseconds)}, ${kilobytes(tensor.bytesSoFar)}`);
    showTensor(tensor);
    const kinds = tensor.isRefined ? "refined" : "there";
    say(`${tensor.name} is ${kinds}`);
  },
  layer({ layer, sizes, modelBytes, accuracy, multiplications }) {
    show("memory", kilobytes(modelBytes));
    if (accuracy !== undefined) show("accuracy", `${accuracy.toFixed(1)} %`);
    if (multiplications) show("multiplications", Math.round(multiplications).toLocaleString("en"));
    if (sizes.length) showLayer(layer, sizes, accuracy);
  },
  answer({ outputs }) { showAnswers(outputs); },
  cut({ layer }) { say(`The file is cut: ${layer} quality layers are whole.`, true); },
  done({ bytes, milliseconds: time, decodingTime }) {
    RECEIVERS.progress({ bytes, decodingTime });
    if (!$("message").classList.contains("wrong")) say(`Complete: ${rows.size} tensors in ${milliseconds(time)}.`);
    setState("done");
  },
  failed({ text }) { say(`This cannot be decoded: ${text}`, true); setState("failed"); },
};

// ---- Showing

function setState(state) { document.body.dataset.state = state; }
function show(id, text) { $(id).textContent = text; }
function say(text, isWrong = false) {
  $("message").textContent = text;
  $("message").classList.toggle("wrong", isWrong);
}

function kilobytes(bytes) {
  return bytes < 1e3 ? `${bytes} B` : bytes < 1e6 ? `${(bytes / 1e3).toFixed(1)} kB` : `${(bytes / 1e6).toFixed(2)} MB`;
}

function milliseconds(time) { return time < 1000 ? `${Math.round(time)} ms` : `${(time / 1000).toFixed(1)} s`; }

function showSpeed(decodingTime) {
  const elements = [...rows.values()].reduce((sum, row) => sum + row.decoded, 0);
  if (decodingTime > 0) show("speed", `${(elements / decodingTime / 1000).toFixed(1)} M elements/s`);
}

function showTensor(tensor) {
  const row = rows.get(tensor.name) ?? addRow(tensor.name);
  row.decoded += tensor.elements;
  const [, shape, type, step, after, picture] = row.element.cells;
  shape.textContent = tensor.shape.join(" × ") || "scalar";
  type.textContent = tensor.role === "weight" ? tensor.type : `${tensor.type}, ${tensor.role}`;
  step.textContent = tensor.step ? tensor.step.toPrecision(3) : "–";
  after.textContent = kilobytes(tensor.bytesSoFar);
  if (tensor.picture) picture.replaceChildren(drawn(tensor.picture));
  row.element.classList.remove("new");
  void row.element.offsetWidth; // so that the animation starts anew
  row.element.classList.add("new");
  show("count", `· ${rows.size}`);
}

function addRow(name) {
  const element = $("tensors").querySelector("tbody").insertRow();
  for (const kind of ["", "", "", "number", "number", ""]) element.insertCell().className = kind;
  element.cells[0].textContent = name;
  const row = { element, decoded: 0 };
  rows.set(name, row);
  return row;
}

function drawn({ width, height, bytes }) {
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  bytes.forEach((byte, i) => {
    const value = (byte - 128) / 127, end = value < 0 ? COLORS.negative : COLORS.positive;
    for (let k = 0; k < 3; ++k)
      image.data[4 * i + k] = COLORS.zero[k] + Math.abs(value) ** 0.7 * (end[k] - COLORS.zero[k]);
    image.data[4 * i + 3] = 255;
  });
  context.putImageData(image, 0, 0);
  return canvas;
}

function showLayer(layer, sizes, accuracy) {
  const sum = (count) => sizes.slice(0, count).reduce((a, b) => a + b, 0);
  if (layer === 1) {
    $("layers").hidden = false;
    for (let i = 1; i < sizes.length; ++i) {
      const mark = document.createElement("i");
      mark.style.left = `${(100 * sum(i)) / sum(sizes.length)}%`;
      $("bar").append(mark);
    }
  }
  const row = $("layers").querySelector("tbody").insertRow();
  const right = accuracy === undefined ? "–" : `${accuracy.toFixed(1)} %`;
  for (const text of [`${layer} of ${sizes.length}`, kilobytes(sum(layer)), right]) row.insertCell().textContent = text;
}

function showAnswers(outputs) {
  const largest = outputs ? Math.max(...outputs) : 0;
  const shares = outputs ? Array.from(outputs, (value) => Math.exp(value - largest)) : new Array(10).fill(0);
  const sum = shares.reduce((a, b) => a + b, 0) || 1;
  document.body.dataset.outputs = outputs ? JSON.stringify(Array.from(outputs)) : "";
  $("answers").replaceChildren(...shares.map((share, digit) => {
    const item = document.createElement("li");
    const percent = (100 * share) / sum;
    item.className = outputs && outputs[digit] === largest ? "best" : "";
    item.innerHTML = `<span>${digit}</span><div class="track"><div style="width:${percent}%"></div></div>
      <span class="number">${outputs ? `${percent.toFixed(1)} %` : ""}</span>`;
    return item;
  }));
}

// ---- Drawing

const paper = $("paper"), pen = paper.getContext("2d", { willReadFrequently: true });

function clearPaper() {
  pen.fillStyle = "#fff";
  pen.fillRect(0, 0, paper.width, paper.height);
}

function position(event) {
  const box = paper.getBoundingClientRect();
  const scale = paper.width / box.width;
  return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
}

paper.addEventListener("pointerdown", (event) => {
  paper.setPointerCapture(event.pointerId);
  Object.assign(pen, { lineWidth: 26, lineCap: "round", lineJoin: "round", strokeStyle: "#000" });
  pen.beginPath();
  pen.moveTo(...position(event));
  pen.lineTo(...position(event));
  pen.stroke();
});
paper.addEventListener("pointermove", (event) => {
  if (!paper.hasPointerCapture(event.pointerId)) return;
  pen.lineTo(...position(event));
  pen.stroke();
  sendDrawing();
});
paper.addEventListener("pointerup", sendDrawing);
$("clear").addEventListener("click", () => { clearPaper(); showAnswers(null); sendDrawing(); });

// The drawing as the network sees digits: cut out, made as large as the digits of the test set are
// (7 of the 8 pixels high), its pixels' share of ink. Null for an empty paper.
function pixelsOfDrawing() {
  const { width, height } = paper, { data } = pen.getImageData(0, 0, width, height);
  const dark = (x, y) => 255 - data[4 * (y * width + x)];
  let left = width, right = -1, top = height, bottom = -1;
  for (let y = 0; y < height; ++y)
    for (let x = 0; x < width; ++x)
      if (dark(x, y) > 40) {
        left = Math.min(left, x); right = Math.max(right, x);
        top = Math.min(top, y); bottom = Math.max(bottom, y);
      }
  if (right < 0) return null;
  const size = Math.max(bottom - top + 1, right - left + 1, 40);
  const small = Object.assign(document.createElement("canvas"), { width: SIDE, height: SIDE });
  const context = small.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, SIDE, SIDE);
  const pixels = new Float32Array(SIDE * SIDE);
  const startX = (left + right + 1 - size) / 2, startY = (top + bottom + 1 - size) / 2;
  for (let y = 0; y < SIDE; ++y)
    for (let x = 0; x < SIDE; ++x) pixels[y * SIDE + x] = INK * inkOf(dark, startX, startY, size / SIDE, x, y);
  return pixels;
}

function inkOf(dark, startX, startY, cell, x, y) {
  let sum = 0, count = 0;
  for (let v = 0; v < 1; v += 0.125)
    for (let u = 0; u < 1; u += 0.125, ++count) {
      const px = Math.floor(startX + (x + u) * cell), py = Math.floor(startY + (y + v) * cell);
      if (px >= 0 && py >= 0 && px < paper.width && py < paper.height) sum += dark(px, py) / 255;
    }
  return sum / count;
}

let sample = null; // the test image that is on the paper instead of a drawing

function sendDrawing() {
  const pixels = sample ?? pixelsOfDrawing();
  worker?.postMessage({ kind: "draw", pixels });
}

async function offerSamples() {
  const answer = await fetch(images);
  const data = new Uint8Array(await answer.arrayBuffer());
  for (let i = 0; i < SAMPLES; ++i) {
    const pixels = data.slice(65 * i, 65 * i + 64);
    const button = Object.assign(document.createElement("button"), { type: "button", title: `a test image: ${data[65 * i + 64]}` });
    button.append(pixelsOnCanvas(pixels));
    button.addEventListener("click", () => {
      sample = Float32Array.from(pixels);
      pen.imageSmoothingEnabled = false;
      pen.drawImage(pixelsOnCanvas(pixels), 0, 0, paper.width, paper.height);
      sendDrawing();
    });
    $("samples").append(button);
  }
  paper.addEventListener("pointerdown", () => { if (sample) { sample = null; clearPaper(); } }, { capture: true });
  $("clear").addEventListener("click", () => { sample = null; }, { capture: true });
  $("samples").firstElementChild?.click();
}

function pixelsOnCanvas(pixels) {
  const canvas = Object.assign(document.createElement("canvas"), { width: SIDE, height: SIDE });
  const context = canvas.getContext("2d"), image = context.createImageData(SIDE, SIDE);
  pixels.forEach((ink, i) => image.data.set([255 - ink * 15.9, 255 - ink * 15.9, 255 - ink * 15.9, 255], 4 * i));
  context.putImageData(image, 0, 0);
  return canvas;
}

clearPaper();
showAnswers(null);
begin().catch((error) => RECEIVERS.failed({ text: `${error.message} (is the page served by a web server?)` }));
