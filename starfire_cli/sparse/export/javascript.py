"""The script that goes with an exported module of WebAssembly: it loads and calls it, in browsers and Node."""

from __future__ import annotations

import json
from collections.abc import Mapping

from starfire_cli.sparse.export.driver import ALIGNED
from starfire_cli.sparse.export.module import Description

_TEXT = """// The network NAME, written by `starfire export`.
//
//   const network = await NAME.load();                // NAME.wasm beside this script, or what is given: its bytes,
//                                                     // a Blob or Response, a URL, or in Node the path of the file
//   const logits = network.run(pixels);               // Float32Array in [0, 1], N * CHANNELS * HEIGHT * WIDTH
//   console.log(network.classify(pixels)[0].label);   // of the first image: the classes, the likeliest first
"use strict";
var NAME = (() => {
  const about = ABOUT;
  const { channels, height, width } = about.image;
  const size = channels * height * width;
  const script = typeof document !== "undefined" && document.currentScript ? document.currentScript.src : "";
  const inNode = typeof require === "function" && typeof __dirname === "string";

  // The bytes of the module: from bytes, a Blob or Response (or a promise of one), an address, or a file in Node.
  async function bytesOf(given) {
    let source = await given;
    if (source === undefined)
      source = inNode ? require("path").join(__dirname, "NAME.wasm") : new URL("NAME.wasm", script || location.href);
    if (source instanceof ArrayBuffer || ArrayBuffer.isView(source)) return source;
    const isAddress = source instanceof URL || typeof source === "string";
    if (inNode && isAddress && !/^(https?|data|blob):/.test(source)) {
      const isFile = source instanceof URL || source.startsWith("file:");
      return require("fs").promises.readFile(isFile ? require("url").fileURLToPath(source) : source);
    }
    if (isAddress) source = await fetch(source);
    if (typeof (source && source.arrayBuffer) !== "function")
      throw new TypeError("NAME.load takes the bytes of NAME.wasm, a Blob or Response, its URL, or in Node its path");
    if (source.ok === false) throw new Error(`${source.url || "NAME.wasm"}: ${source.status} ${source.statusText}`);
    return source.arrayBuffer();
  }

  class Network {
    constructor(exports) {
      this.about = about;
      this._exports = exports;
      const need = exports.NAME_memory(1);
      const handle = this._take(8), memory = this._take(Number(need));
      this._check(exports.NAME_create(handle, 1, memory, need));
      this._network = new Int32Array(exports.memory.buffer, handle, 1)[0];
      this._buffer = this._end;  // of the images of a call, the last in memory: it grows in place
    }

    // The logits of all images, one image after the other.
    run(pixels) {
      if (!(pixels instanceof Float32Array) || pixels.length % size)
        throw new TypeError(`pixels must be a Float32Array of N * ${channels} * ${height} * ${width} numbers`);
      const images = pixels.length / size;
      const bytes = 4 * images * (size + about.outputs);
      this._end = this._buffer;
      this._buffer = this._take(bytes);
      const logits = this._buffer + 4 * pixels.length;
      const memory = this._exports.memory.buffer;
      new Float32Array(memory, this._buffer, pixels.length).set(pixels);
      this._check(this._exports.NAME_run(this._network, this._buffer, BigInt(images), logits));
      return new Float32Array(memory, logits, images * about.outputs).slice();
    }

    // The classes of one image, {label, index, probability}, the likeliest first.
    classify(pixels) {
      if (pixels.length !== size) throw new TypeError(`classify takes one image, ${size} numbers`);
      const logits = Array.from(this.run(pixels).subarray(0, about.outputs));
      const most = Math.max(...logits);
      const powers = logits.map((logit) => Math.exp(logit - most));
      const sum = powers.reduce((a, b) => a + b, 0);
      return powers
        .map((power, index) => ({ label: about.labels[index], index, probability: power / sum }))
        .sort((a, b) => b.probability - a.probability);
    }

    // Bytes behind everything that is in use.
    _take(bytes) {
      const memory = this._exports.memory;
      const start = Math.ceil((this._end || this._exports.heap.value) / ALIGNED) * ALIGNED;
      const missing = start + bytes - memory.buffer.byteLength;
      if (missing > 0) memory.grow(Math.ceil(missing / 65536));
      this._end = start + bytes;
      return start;
    }

    _check(code) {
      if (code) throw new Error(`NAME: error ${code}`);
    }
  }

  return {
    about,
    async load(source) {
      const { instance } = await WebAssembly.instantiate(await bytesOf(source), {});
      if (!instance.exports.NAME_create) throw new Error("NAME.load: this module of WebAssembly is another one");
      return new Network(instance.exports);
    },
  };
})();
if (typeof module !== "undefined") module.exports = NAME;
"""


def script(identity: Description, about: Mapping[str, object]) -> str:
    """NAME.js.

    Args:
        identity: of the network.
        about: what NAME.json says.
    """
    C, H, W = identity.image
    text = _TEXT.replace("CHANNELS * HEIGHT * WIDTH", f"{C} * {H} * {W}").replace("ALIGNED", str(ALIGNED))
    before, after = (part.replace("NAME", identity.name) for part in text.split("ABOUT"))
    return before + safe_json(about) + after


def safe_json(value: object) -> str:
    """JSON that may stand in a script of a page: nothing in it can end the script."""
    return json.dumps(value).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
