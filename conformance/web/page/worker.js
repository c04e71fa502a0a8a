// Fetches a stream and decodes it as it arrives; runs the network on what is there.

import { compileDecoder, Decoder } from "./decoder.js";

const PICTURE = { rows: 24, columns: 96 };
const TICK = 50; // milliseconds between the pieces of a slow line

let decoder = null, drawn = null, tests = null, decodingTime = 0;

onmessage = ({ data }) => {
  if (data.kind === "start") start(data).catch(fail);
  if (data.kind === "draw") { drawn = data.pixels; answer(); }
};

function fail(error) {
  decoder = null; // what it has is of no use
  tell("failed", { text: error.message });
}

function tell(kind, more = {}) { postMessage({ kind, ...more }); }

async function start({ address, file, rate, factorized, images }) {
  const [module, answerOfTests] = await Promise.all([compileDecoder("nnrdec.wasm"), fetch(images)]);
  tests = answerOfTests.ok ? new Uint8Array(await answerOfTests.arrayBuffer()) : null;
  decoder = await Decoder.open(module, factorized);
  const { body, size } = file ? { body: file.stream(), size: file.size } : await fetched(address);
  const begin = performance.now();
  tell("opened", { size });
  let bytes = 0;
  try {
    for await (const piece of pieces(body, rate)) {
      bytes += piece.length;
      take(decoder.feed(piece), begin, bytes);
      tell("progress", { bytes, decodingTime });
      if (decoder.isAtEnd) break;
    }
    take(decoder.end(), begin, bytes);
  } catch (error) {
    if (!error.isCut) throw error;
    tell("cut", { layer: decoder.layer });
  }
  tell("done", { bytes, milliseconds: performance.now() - begin, decodingTime });
}

async function fetched(address) {
  const answer = await fetch(address, { cache: "no-store" });
  if (!answer.ok) throw new Error(`${address}: ${answer.status} ${answer.statusText}`);
  return { body: answer.body, size: Number(answer.headers.get("Content-Length")) || 0 };
}

// The pieces of a body as they come; with a rate, in bytes a second, no faster than that.
async function* pieces(body, rate) {
  const reader = body.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const most = rate ? Math.max(1, Math.round((rate * TICK) / 1000)) : value.length;
    for (let start = 0; start < value.length; start += most) {
      if (rate) await new Promise((resolve) => setTimeout(resolve, TICK));
      yield value.subarray(start, start + most);
    }
  }
}

// Passes on what the decoder gives.
function take(events, begin, bytes) {
  for (let before = performance.now(); ; before = performance.now()) {
    const { done, value } = events.next();
    decodingTime += performance.now() - before;
    if (done) return;
    if (value.tensor) {
      const { tensor } = value;
      const { values } = decoder;
      const shown = values?.length ? picture(values, tensor.shape) : null;
      const at = performance.now() - begin;
      tell("tensor", { ...tensor, picture: shown, bytesSoFar: bytes, milliseconds: at });
      if (decoder.layer > 0) answer();
    } else {
      const sizes = decoder.layerSizes;
      tell("layer", { layer: value.layer, sizes, modelBytes: decoder.modelBytes, ...score() });
      answer();
    }
  }
}

// Some of the elements as bytes, 128 being 0: of a matrix of the first dimension and the others.
function picture(values, shape) {
  const rows = shape.length > 1 ? shape[0] : 1, columns = values.length / rows;
  const height = Math.min(rows, PICTURE.rows), width = Math.min(columns, PICTURE.columns);
  const shown = new Float32Array(height * width);
  let largest = 0;
  for (let y = 0, i = 0; y < height; ++y)
    for (let x = 0; x < width; ++x, ++i) {
      const row = Math.floor((y * rows) / height), column = Math.floor((x * columns) / width);
      shown[i] = Number(values[row * columns + column]);
      if (Math.abs(shown[i]) > largest) largest = Math.abs(shown[i]);
    }
  const bytes = Uint8Array.from(shown, (value) => 128 + (largest ? (127 * value) / largest : 0));
  return { width, height, bytes };
}

// How many of the test images the network gets right now.
function score() {
  if (!tests) return {};
  let right = 0;
  const count = Math.floor(tests.length / 65);
  for (let i = 0; i < count; ++i) {
    const outputs = decoder.run(tests.subarray(65 * i, 65 * i + 64));
    if (!outputs) return {};
    right += outputs.indexOf(Math.max(...outputs)) === tests[65 * i + 64];
  }
  return { accuracy: (100 * right) / count, multiplications: decoder.multiplications };
}

function answer() {
  if (!drawn || !decoder || !decoder.layer) return;
  const outputs = decoder.run(drawn);
  if (outputs) tell("answer", { outputs });
}
