// The device decoder in WebAssembly, as an object that is fed bytes and gives tensors.

const STATUS = { END: 1, NEED_INPUT: 2, INVALID: 4, CUT: 12 }; // of nnr.h
const ROLES = ["weight", "factor G", "factor H", "local scaling", "beta", "gamma", "mean", "var",
  "bias", "product", "tied", "empty", "removed"];
const ARRAYS = {
  bool: Uint8Array, int8: Int8Array, int16: Int16Array, int32: Int32Array, int64: BigInt64Array,
  uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array, uint64: BigUint64Array,
  float32: Float32Array, float64: Float64Array,
};

export async function compileDecoder(address) {
  const answer = await fetch(address);
  if (!answer.ok) throw new Error(`${address}: ${answer.status} ${answer.statusText}`);
  return WebAssembly.compile(await answer.arrayBuffer());
}

export class Decoder {
  // `module`: what compileDecoder gave; `factorized`: decomposed weights come as their factors.
  static async open(module, factorized) {
    const imports = {};
    for (const { module: from, name } of WebAssembly.Module.imports(module)) {
      imports[from] ??= {};
      imports[from][name] = () => { throw new Error(`the decoder called ${name}`); };
    }
    const { exports } = await WebAssembly.instantiate(module, imports);
    exports._initialize?.();
    if (!exports.open(factorized ? 1 : 0)) throw new Error("no memory for a decoder");
    return new Decoder(exports);
  }

  constructor(exports) {
    this.wasm = exports;
    this.layer = 0; // quality layers that are complete
    this.isAtEnd = false;
    this.isBetweenLayers = false;
  }

  // Takes bytes, and yields what comes of them: {tensor} or {layer}. Throws what is wrong with them.
  *feed(bytes) {
    const place = this.wasm.input(bytes.length);
    if (!place) throw new Error("no memory for the stream");
    new Uint8Array(this.wasm.memory.buffer, place, bytes.length).set(bytes);
    for (let taken = 0; ;) {
      yield* this.#advance();
      if (this.isAtEnd || taken === bytes.length) return;
      const count = this.wasm.feed(taken, bytes.length - taken);
      if (!count) { yield* this.#advance(); return; }
      taken += count;
    }
  }

  // There are no more bytes.
  *end() {
    this.wasm.feed_end();
    yield* this.#advance();
  }

  *#advance() {
    while (!this.isAtEnd) {
      const status = this.isBetweenLayers ? this.wasm.next_layer() : this.wasm.next();
      if (status === STATUS.NEED_INPUT) return;
      if (status >= STATUS.INVALID) throw this.#failure(status);
      if (this.isBetweenLayers) {
        this.isBetweenLayers = false;
        this.isAtEnd = status === STATUS.END;
      } else if (status === STATUS.END) {
        this.isBetweenLayers = true;
        yield { layer: ++this.layer };
      } else {
        yield { tensor: this.#tensor() };
      }
    }
  }

  #failure(status) {
    const { wasm } = this;
    const failure = new Error(`byte ${wasm.error_offset()}: ${this.#text(wasm.error())}`);
    failure.isCut = status === STATUS.CUT; // the layers before are good
    return failure;
  }

  #text(start) {
    const memory = new Uint8Array(this.wasm.memory.buffer);
    return new TextDecoder().decode(memory.slice(start, memory.indexOf(0, start)));
  }

  #tensor() {
    const { wasm } = this;
    const shape = Array.from({ length: wasm.rank() }, (_, i) => wasm.dimension(i));
    return {
      name: this.#text(wasm.name()), role: ROLES[wasm.role()], type: this.#text(wasm.type()), shape,
      step: wasm.step(), elements: wasm.elements(), bytes: wasm.elements() * wasm.type_size(),
      isRefined: wasm.change() > 0,
    };
  }

  // A view of the elements of the tensor that came last; of float16 and bfloat16 a copy in float32; of
  // other narrow types nothing.
  get values() {
    const { wasm } = this;
    const type = this.#text(wasm.type());
    const make = ARRAYS[type];
    if (make) return new make(wasm.memory.buffer, wasm.data(), wasm.elements());
    if (type === "bfloat16") {
      const words = new Uint16Array(wasm.memory.buffer, wasm.data(), wasm.elements());
      return new Float32Array(Uint32Array.from(words, (word) => word << 16).buffer);
    }
    if (type === "float16") {
      const words = new Uint16Array(wasm.memory.buffer, wasm.data(), wasm.elements());
      return Float32Array.from(words, halfToNumber);
    }
    return null;
  }

  // Quality layers of the stream, bytes of each; of an ordinary one nothing.
  get layerSizes() {
    const count = this.wasm.layers();
    return count < 2 ? [] : Array.from({ length: count }, (_, i) => this.wasm.layer_size(i));
  }

  get modelBytes() { return this.wasm.bytes(); }

  // The digits network's ten outputs for 64 pixels from 0 to 16; null if the model is none.
  run(pixels) {
    const { wasm } = this;
    new Float32Array(wasm.memory.buffer, wasm.pixels(), 64).set(pixels);
    return wasm.run() ? new Float32Array(wasm.memory.buffer, wasm.outputs(), 10).slice() : null;
  }

  get multiplications() { return this.wasm.multiplications(); }
}

function halfToNumber(word) {
  const sign = word & 0x8000 ? -1 : 1, exponent = (word >> 10) & 31, mantissa = word & 1023;
  if (exponent === 31) return mantissa ? NaN : sign * Infinity;
  return sign * (exponent ? (1024 + mantissa) * 2 ** (exponent - 25) : mantissa * 2 ** -24);
}
