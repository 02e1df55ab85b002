"""A page with a network in it, which classifies drawn digits or dropped images in a browser, offline."""

from __future__ import annotations

import base64
import html

_STYLE = """
:root { color-scheme: light dark; --paper: #fbfbfa; --card: #fff; --ink: #1d1f21; --faint: #5c6166; --line: #d5d8db;
  --accent: #1f5fbf; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #15171a; --card: #1e2125; --ink: #e8eaed; --faint: #a3a9b0; --line: #3a3f45; --accent: #7fb0ff; }
}
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1.5rem 1rem 3rem;
  color: var(--ink); background: var(--paper); }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 0.9rem; margin: 0 0 0.5rem; color: var(--faint); font-weight: 600; }
p { margin: 0.25rem 0; }
.faint { color: var(--faint); }
main { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 16rem), 1fr)); gap: 1rem;
  margin: 1.25rem 0; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 0.5rem; padding: 1rem; }
canvas { display: block; width: 100%; max-width: 280px; aspect-ratio: 1; background: #000; touch-action: none;
  border-radius: 0.25rem; }
#drawn { cursor: crosshair; }
#shown { image-rendering: pixelated; }
#shown.empty { background: none; border: 1px dashed var(--line); }
button, .button { font: inherit; display: inline-block; margin: 0.75rem 0.5rem 0 0; padding: 0.35rem 0.9rem;
  color: var(--ink); background: var(--paper); border: 1px solid var(--line); border-radius: 0.25rem; cursor: pointer; }
button:focus-visible, input:focus-visible + .button { outline: 2px solid var(--accent); outline-offset: 2px; }
#file { position: absolute; opacity: 0; width: 1px; }
.dragged section { border-color: var(--accent); }
#best { font-size: 2rem; line-height: 1.2; font-weight: 600; overflow-wrap: anywhere; }
table { width: 100%; border-collapse: collapse; margin-top: 0.75rem; }
td { padding: 0.15rem 0.75rem 0.15rem 0; overflow-wrap: anywhere; }
td:nth-child(2) { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
td:nth-child(3) { width: 45%; padding-right: 0; }
.bar { background: var(--accent); height: 0.6rem; min-width: 1px; border-radius: 0.1rem; }
[hidden] { display: none !important; }
@media (max-width: 36rem) {
  #draw:not([hidden]) { order: -2; }
  #draw:not([hidden]) ~ #answer { order: -1; }
}
"""

_BODY = """<h1>TITLE</h1>
<p id="task">This page classifies images.</p>
<p class="faint" id="about">It needs JavaScript and WebAssembly.</p>
<main>
  <section id="draw"><h2>Draw</h2>
    <canvas id="drawn" width="280" height="280" role="img" aria-label="Draw here"></canvas>
    <button id="clear" type="button">Clear</button>
  </section>
  <section><h2>What the network sees</h2>
    <canvas id="shown" class="empty" width="280" height="280" role="img" aria-label="What the network sees"></canvas>
    <input id="file" type="file" accept="image/*"><label class="button" for="file">Choose an image</label>
  </section>
  <section id="answer"><h2>Answer</h2>
    <div role="status"><p id="best">-</p><p class="faint" id="status">Loading the network</p></div>
    <table id="classes" aria-label="Likeliest classes"></table>
  </section>
</main>
"""

_SCRIPT = """
(async (library) => {
  const about = library.about;
  const { channels, height, width } = about.image;
  const digits = Boolean(about.data) && about.labels.join("") === "0123456789";
  const named = (label) => (about.data === null ? `class ${label}` : label);
  const byId = (id) => document.getElementById(id);
  const chosen = "drop an image anywhere on this page, or choose one";
  byId("task").textContent = digits ? `Draw a digit with mouse or finger; or ${chosen}.` : `D${chosen.slice(1)}.`;
  byId("about").textContent = `It becomes ${width} x ${height} pixels and one of ${about.outputs} classes. ` +
    "The network runs in this page, offline: no image leaves this computer.";
  byId("draw").hidden = !digits;
  const [drawn, shown, status] = ["drawn", "shown", "status"].map(byId);
  const pen = drawn.getContext("2d", { willReadFrequently: true });
  const bytes = Uint8Array.from(atob(byId("wasm").textContent.trim()), (letter) => letter.charCodeAt(0));
  const network = await library.load(bytes);
  const waiting = digits ? "Nothing drawn yet" : "No image yet";

  function scratch(w, h) {
    const canvas = document.createElement("canvas");
    canvas.width = w;
    canvas.height = h;
    return [canvas, canvas.getContext("2d", { willReadFrequently: true })];
  }

  // Classifies pixels (channels * height * width), and shows them.
  function classify(pixels) {
    const begin = performance.now();
    let found = network.classify(pixels), runs = 1;
    while (performance.now() - begin < 20 && runs < 1000) { network.run(pixels); runs++; }
    const each = (performance.now() - begin) / runs;
    const [small, context] = scratch(width, height);
    const image = context.createImageData(width, height);
    for (let i = 0; i < width * height; i++) {
      for (let c = 0; c < 3; c++) image.data[4 * i + c] = 255 * pixels[(c % channels) * width * height + i];
      image.data[4 * i + 3] = 255;
    }
    context.putImageData(image, 0, 0);
    const view = shown.getContext("2d");
    shown.classList.remove("empty");
    view.imageSmoothingEnabled = false;
    view.drawImage(small, 0, 0, shown.width, shown.height);
    byId("best").textContent = named(found[0].label);
    status.textContent = `${(100 * found[0].probability).toFixed(1)} % sure; ` +
      `${each.toFixed(each < 1 ? 3 : 1)} ms an image, in this browser`;
    const rows = found.slice(0, 5).map(({ label, probability }) => {
      const row = document.createElement("tr");
      const [name, share, bar] = [0, 1, 2].map(() => row.appendChild(document.createElement("td")));
      name.textContent = named(label);
      share.textContent = `${(100 * probability).toFixed(1)} %`;
      bar.appendChild(Object.assign(document.createElement("div"), { className: "bar" })).style.width =
        `${100 * probability}%`;
      return row;
    });
    byId("classes").replaceChildren(...rows);
    document.body.dataset.logits = Array.from(network.run(pixels)).join(" ");
  }

  // The pixels of a picture, its middle cut out, as the network takes them.
  function pixelsOf(picture, w, h) {
    const [, context] = scratch(width, height);
    const scale = Math.max(width / w, height / h);
    context.imageSmoothingQuality = "high";
    context.drawImage(picture, (width - w * scale) / 2, (height - h * scale) / 2, w * scale, h * scale);
    const data = context.getImageData(0, 0, width, height).data;
    return Float32Array.from({ length: channels * width * height }, (_, i) =>
      data[4 * (i % (width * height)) + Math.floor(i / (width * height))] / 255);
  }

  // A drawn digit as those of the UCI set were made: cut out, 32 x 32 points, counted in blocks of 4 x 4; scaled up.
  function digit() {
    const { data } = pen.getImageData(0, 0, drawn.width, drawn.height);
    let [left, right, top, bottom] = [drawn.width, -1, drawn.height, -1];
    for (let y = 0; y < drawn.height; y++)
      for (let x = 0; x < drawn.width; x++)
        if (data[4 * (y * drawn.width + x)] > 40) {
          [left, right] = [Math.min(left, x), Math.max(right, x)];
          [top, bottom] = [Math.min(top, y), Math.max(bottom, y)];
        }
    const levels = new Float32Array(64);
    if (right >= 0) {
      const [, context] = scratch(8, 8);
      const [w, h] = [right - left + 1, bottom - top + 1];
      const scale = 8 / Math.max(w, h);
      context.imageSmoothingQuality = "high";
      context.fillRect(0, 0, 8, 8);
      context.drawImage(drawn, left, top, w, h, (8 - w * scale) / 2, (8 - h * scale) / 2, w * scale, h * scale);
      const found = context.getImageData(0, 0, 8, 8).data;
      for (let i = 0; i < 64; i++) levels[i] = Math.round((found[4 * i] / 255) * 16) / 16;
    }
    const at = (i, size) => Math.min(7, Math.max(0, ((i + 0.5) * 8) / size - 0.5));
    return Float32Array.from({ length: channels * width * height }, (_, i) => {
      const y = at(Math.floor(i / width) % height, height), x = at(i % width, width);
      const [y0, x0] = [Math.floor(y), Math.floor(x)];
      const [y1, x1, dy, dx] = [Math.min(7, y0 + 1), Math.min(7, x0 + 1), y - y0, x - x0];
      const upper = levels[8 * y0 + x0] * (1 - dx) + levels[8 * y0 + x1] * dx;
      const lower = levels[8 * y1 + x0] * (1 - dx) + levels[8 * y1 + x1] * dx;
      return Math.round(255 * (upper * (1 - dy) + lower * dy)) / 255;
    });
  }

  function clear() {
    pen.fillStyle = "#000";
    pen.fillRect(0, 0, drawn.width, drawn.height);
    shown.getContext("2d").clearRect(0, 0, shown.width, shown.height);
    shown.classList.add("empty");
    byId("best").textContent = "-";
    status.textContent = waiting;
    byId("classes").replaceChildren();
    delete document.body.dataset.logits;
  }

  async function take(file) {
    if (!file) return;
    try {
      const picture = await createImageBitmap(file);
      clear();
      classify(pixelsOf(picture, picture.width, picture.height));
    } catch {
      clear();
      status.textContent = `${file.name} is no image that this browser can read`;
    }
  }

  let last = null;
  const place = (event) => [event.offsetX, event.offsetY].map((v) => (v * drawn.width) / drawn.clientWidth);
  drawn.onpointerdown = (event) => { last = place(event); drawn.setPointerCapture(event.pointerId); };
  function stroke(to) {
    Object.assign(pen, { strokeStyle: "#fff", lineWidth: 30, lineCap: "round" });
    pen.beginPath();
    pen.moveTo(...last);
    pen.lineTo(to[0] + 0.01, to[1]);  // a tap leaves a dot
    pen.stroke();
    last = to;
  }
  drawn.onpointermove = (event) => { if (last !== null) stroke(place(event)); };
  drawn.onpointerup = () => {
    if (last === null) return;
    stroke(last);
    last = null;
    classify(digit());
  };
  drawn.onpointercancel = () => { last = null; };
  byId("clear").onclick = clear;
  byId("file").onchange = (event) => { take(event.target.files[0]); event.target.value = ""; };
  document.ondragover = (event) => { event.preventDefault(); document.body.classList.add("dragged"); };
  document.ondragleave = () => document.body.classList.remove("dragged");
  document.ondrop = (event) => {
    event.preventDefault();
    document.body.classList.remove("dragged");
    take(event.dataTransfer.files[0]);
  };
  clear();
})(NAME).catch((error) => { document.getElementById("status").textContent = String(error); });
"""


def page(name: str, title: str, script: str, module: bytes) -> str:
    """NAME.html: nothing is loaded from anywhere.

    Args:
        name: an identifier, of the network.
        title: for people; it may hold anything.
        script: NAME.js.
        module: NAME.wasm.
    """
    body = _BODY.replace("TITLE", html.escape(title))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="generator" content="starfire export">
<meta name="viewport" content="width=device-width">
<title>{html.escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
{body}<script type="text/plain" id="wasm">{base64.b64encode(module).decode()}</script>
<script>{script}</script>
<script>{_SCRIPT.replace("NAME", name)}</script>
</body>
</html>
"""
