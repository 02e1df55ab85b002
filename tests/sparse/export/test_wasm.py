"""Exported modules of WebAssembly: how they are linked, and that they run in Node and in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn

from starfire_cli.sparse.export.javascript import safe_json, script
from starfire_cli.sparse.export.module import Description
from starfire_cli.sparse.export.page import page
from starfire_cli.sparse.export.wasm import link
from tests.helpers.exported import export_small
from tests.tiny import Net

pytest.importorskip("llvmlite")
SIDE = 12
IDENTITY = Description(name="net", image=(3, SIDE, SIDE), outputs=5, mean=(0, 0, 0), std=(1, 1, 1), digest="")
ABOUT = {"image": {"channels": 3, "height": SIDE, "width": SIDE}, "outputs": 5, "labels": [*"abcd", "</script>"]}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NODE = shutil.which("node")

_CHOOSE = f"""
const canvas = Object.assign(document.createElement("canvas"), {{ width: {SIDE}, height: {SIDE} }});
const grey = canvas.getContext("2d").createImageData({SIDE}, {SIDE});
grey.data.forEach((_, i) => {{ grey.data[i] = i % 4 === 3 ? 255 : i >> 2; }});
canvas.getContext("2d").putImageData(grey, 0, 0);
canvas.toBlob((blob) => {{
  const held = new DataTransfer(), input = document.getElementById("file");
  held.items.add(new File([blob], "grey.png"));
  input.files = held.files;
  const wait = () => document.getElementById("status").textContent.startsWith("Loading")
    ? setTimeout(wait, 50) : input.dispatchEvent(new Event("change"));
  wait();
}});
"""


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return Net(5).eval()


@pytest.fixture(scope="module")
def module(model: nn.Module) -> bytes:
    return link(export_small(model, SIDE, "wasm32"))


def number(data: bytes, at: int) -> tuple[int, int]:
    found = shift = 0
    while True:
        found |= (data[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if not data[at - 1] & 0x80:
            return found, at


def test_a_module_needs_nothing_and_its_sections_are_in_order(module: bytes) -> None:
    assert module[:8] == b"\0asm\1\0\0\0"
    at, kinds = 8, []
    while at < len(module):
        kinds.append(module[at])
        size, at = number(module, at + 1)
        at += size
    assert at == len(module)
    order = [1, 3, 5, 6, 7, 12, 10, 11]  # types, functions, memory, globals, exports, data count, code, data
    assert [kind for kind in order if kind in kinds] == kinds, "no imports, nothing for linkers"


def test_linking_again_gives_the_same_bytes(model: nn.Module, module: bytes) -> None:
    assert link(export_small(model, SIDE, "wasm32")) == module


def test_labels_cannot_end_the_script() -> None:
    assert "<" not in safe_json(ABOUT) and json.loads(safe_json(ABOUT)) == ABOUT
    text = page("net", "<b>title", script(IDENTITY, ABOUT), b"\0asm")
    assert text.count("</script>") == text.count("<script") == 3 and "<b>" not in text


@pytest.mark.skipif(NODE is None, reason="no Node")
@pytest.mark.parametrize("batch", [1, 3])
@torch.no_grad()
def test_node_gives_the_network_s_logits(model: nn.Module, module: bytes, tmp_path: Path, batch: int) -> None:
    images = torch.rand(batch, 3, SIDE, SIDE)
    (tmp_path / "net.wasm").write_bytes(module)
    (tmp_path / "net.js").write_text(script(IDENTITY, ABOUT))
    (tmp_path / "pixels").write_bytes(images.numpy().tobytes())
    (tmp_path / "run.js").write_text(
        """
const net = require("./net.js"), bytes = require("fs").readFileSync("pixels");
net.load().then((network) => {
  const pixels = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
  network.run(new Float32Array(0));
  let refused = 0;
  for (const wrong of [pixels.subarray(1), [1, 2, 3]]) try { network.run(wrong); } catch (error) { refused++; }
  const logits = Array.from(network.run(pixels));
  const size = pixels.length / BATCH, first = network.classify(pixels.subarray(0, size))[0];
  for (const wrong of [0, 2]) try { network.classify(new Float32Array(wrong * size)); } catch (error) { refused++; }
  for (let images = 1; images < 200; images++) network.run(new Float32Array(images * size));  // in the same place
  const held = network._exports.memory.buffer.byteLength;
  const again = network.run(pixels).every((logit, i) => logit === logits[i]);
  console.log(JSON.stringify({ logits, first, refused, held, again }));
});
""".replace("BATCH", str(batch))
    )
    assert NODE is not None
    done = subprocess.run([NODE, "run.js"], cwd=tmp_path, check=True, capture_output=True, text=True)
    found, expected = json.loads(done.stdout), model(images)
    assert torch.allclose(torch.tensor(found["logits"]).reshape(batch, 5), expected, rtol=1e-5, atol=1e-6)
    best = int(expected[0].argmax())
    assert (found["first"]["index"], found["first"]["label"]) == (best, ABOUT["labels"][best])
    assert found["first"]["probability"] == pytest.approx(float(expected[0].softmax(0)[best]), abs=1e-5)
    assert found["refused"] == 4 and found["again"]
    assert found["held"] < len(module) + 200 * 4 * (3 * SIDE * SIDE + 5) + (1 << 20)


@pytest.mark.skipif(NODE is None, reason="no Node")
def test_node_loads_from_bytes_paths_and_addresses(module: bytes, tmp_path: Path) -> None:
    (tmp_path / "some where").mkdir()
    (tmp_path / "some where" / "other.wasm").write_bytes(module)
    (tmp_path / "net.js").write_text(script(IDENTITY, ABOUT))
    (tmp_path / "run.js").write_text(
        """
const net = require("./net.js"), fs = require("fs"), path = "some where/other.wasm", bytes = fs.readFileSync(path);
const url = require("url").pathToFileURL(path), data = "data:application/wasm;base64," + bytes.toString("base64");
const given = [path, url, url.href, bytes, new Uint8Array(bytes), new Blob([bytes]), fs.promises.readFile(path), data,
  undefined, 42, "no such file", Buffer.from("AGFzbQEAAAA=", "base64")];
(async () => {
  for (const source of given)
    console.log(await net.load(source).then((n) => n.run(new Float32Array(3 * 144)).length, (e) => e.message));
})();
"""
    )
    assert NODE is not None
    done = subprocess.run([NODE, "run.js"], cwd=tmp_path, check=True, capture_output=True, text=True)
    *loaded, beside, number, missing, other = done.stdout.splitlines()
    assert loaded == ["5"] * 8
    assert "net.wasm" in beside and "no such file" in missing
    assert number.startswith("net.load takes the bytes of net.wasm") and other.endswith("is another one")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
@torch.no_grad()
@pytest.mark.parametrize("chosen", [False, True], ids=["empty", "an image"])
def test_a_browser_classifies_offline(model: nn.Module, module: bytes, tmp_path: Path, chosen: bool) -> None:
    text = page("net", "title", script(IDENTITY, ABOUT | {"data": None}), module)
    (tmp_path / "net.html").write_text(
        text.replace("</body>", f"<script>{_CHOOSE}</script></body>") if chosen else text
    )
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=10000", "--dump-dom"]
    address = (tmp_path / "net.html").as_uri()
    done = subprocess.run([*command, address], check=True, capture_output=True, text=True, timeout=120)
    assert "<h1>title</h1>" in done.stdout and "Drop an image anywhere on this page, or choose one." in done.stdout
    found = re.search(r'data-logits="([^"]*)"', done.stdout)
    if not chosen:
        assert found is None and "No image yet" in done.stdout and "<tr>" not in done.stdout
        return
    expected = model((torch.arange(SIDE * SIDE).reshape(1, 1, SIDE, SIDE) / 255).expand(1, 3, SIDE, SIDE))[0]
    assert found is not None and re.search(r"[\d.]+ % sure; [\d.]+ ms an image", done.stdout)
    assert torch.allclose(torch.tensor([float(x) for x in found[1].split()]), expected, rtol=1e-5, atol=1e-6)
    assert f'id="best">class {ABOUT["labels"][int(expected.argmax())]}<' in done.stdout
