"""A page with a network in it, which classifies drawn digits or dropped images in a browser, offline."""

from __future__ import annotations

import base64
import html

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 40rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
canvas { border: 1px solid #888; background: #000; touch-action: none; width: 280px; height: 280px; }
#shown { image-rendering: pixelated; }
.row { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; }
#drop { border: 2px dashed #888; padding: 1rem; margin: 1rem 0; }
.bar { background: #4a7bd0; height: 0.6rem; }
td { padding: 0 0.75rem 0 0; min-width: 3rem; }
"""

_BODY = """<h1>TITLE</h1>
<p id="status" role="status">Loading ...</p>
<div class="row">
  <canvas id="drawn" width="280" height="280" aria-label="Draw here"></canvas>
  <canvas id="shown" width="280" height="280" aria-label="What the network sees"></canvas>
</div>
<p><button id="clear" type="button">Clear</button></p>
<div id="drop">Drop an image here, or choose one: <input id="file" type="file" accept="image/*"></div>
<table id="classes"></table>
"""

_SCRIPT = """
(async (library) => {
  const about = library.about;
  const { channels, height, width } = about.image;
  const digits = about.labels.join("") === "0123456789";
  const byId = (id) => document.getElementById(id);
  const [drawn, shown, status] = ["drawn", "shown", "status"].map(byId);
  const pen = drawn.getContext("2d", { willReadFrequently: true });
  const bytes = Uint8Array.from(atob(byId("wasm").textContent.trim()), (letter) => letter.charCodeAt(0));
  const network = await library.load(bytes);

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
    view.imageSmoothingEnabled = false;
    view.drawImage(small, 0, 0, shown.width, shown.height);
    status.textContent = `${each.toFixed(each < 1 ? 3 : 1)} ms an image, in this browser`;
    const rows = found.slice(0, 5).map(({ label, probability }) => {
      const row = document.createElement("tr");
      const [name, share, bar] = [0, 1, 2].map(() => row.appendChild(document.createElement("td")));
      name.textContent = label;
      share.textContent = `${(100 * probability).toFixed(1)} %`;
      bar.appendChild(Object.assign(document.createElement("div"), { className: "bar" })).style.width =
        `${200 * probability}px`;
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
  }

  async function take(file) {
    if (!file) return;
    try {
      const picture = await createImageBitmap(file);
      classify(pixelsOf(picture, picture.width, picture.height));
    } catch {
      status.textContent = `${file.name} is no image that this browser can read`;
    }
  }

  let last = null;
  const place = (event) => [event.offsetX, event.offsetY].map((v) => (v * drawn.width) / drawn.clientWidth);
  drawn.onpointerdown = (event) => { last = place(event); drawn.setPointerCapture(event.pointerId); };
  drawn.onpointermove = (event) => {
    if (last === null) return;
    Object.assign(pen, { strokeStyle: "#fff", lineWidth: 26, lineCap: "round" });
    pen.beginPath();
    pen.moveTo(...last);
    last = place(event);
    pen.lineTo(...last);
    pen.stroke();
  };
  drawn.onpointerup = () => {
    last = null;
    classify(digits ? digit() : pixelsOf(drawn, drawn.width, drawn.height));
  };
  byId("clear").onclick = clear;
  byId("file").onchange = (event) => take(event.target.files[0]);
  document.ondragover = (event) => event.preventDefault();
  document.ondrop = (event) => { event.preventDefault(); take(event.dataTransfer.files[0]); };
  if (!digits) drawn.hidden = byId("clear").hidden = true;
  clear();
  classify(new Float32Array(channels * height * width).fill(0.5));
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
