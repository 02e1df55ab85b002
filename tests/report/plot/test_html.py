"""The HTML page holds what it should, loads nothing, runs nothing, and shows itself in a browser."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from starfire_cli.records.plot import Material
from starfire_cli.report.plot.groups import entitled, group_runs
from starfire_cli.report.plot.html import html_page
from starfire_cli.report.plot.html_parts import layer_tables
from starfire_cli.report.plot.kinds import draw
from starfire_cli.workflows.plot.run_files import read_curves, read_run
from tests.helpers.plot_runs import config_of, network, rows_of, write_attack, write_run

VOID = {"meta", "br", "img", "hr", "link", "input"}
HOSTILE = "<script>alert(1)</script>&\"'"


class Page(HTMLParser):
    """Elements, ids, references and text; complains about tags that are not closed."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.ids: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(source)
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        if tag not in VOID:
            self._open.append(tag)
        self._note(tag, attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self._note(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> closes nothing"
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.words.append(data)

    def _note(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            self.attributes.append((tag, name, value or ""))
            if name == "id":
                self.ids[value or ""] += 1

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A single run with everything, whose names try to be code."""
    folder = tmp_path_factory.mktemp("html")
    config = config_of(note=HOSTILE) | {"command": f"starfire train --name '{HOSTILE}'"}
    run = read_run(write_run(folder / "my run", config))
    curves = read_curves(write_attack(folder / "my run" / "a.json", warnings=[HOSTILE]))
    material = Material(runs=(run,), networks=(network(run.path / "best.pt"),), curves=tuple(curves), notes=(HOSTILE,))
    groups = group_runs(material.runs)
    material = entitled(material, groups)
    kinds = ("convergence", "layers", "window", "kernels", "robustness")
    figures = {k: (lambda width, k=k: draw(k, material, width=width)) for k in kinds}
    return html_page(material, groups, figures, command="starfire plot <here>")


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("html")
    runs = []
    for seed in (0, 1):
        for method, best in (("dense", 0.95), ("ck", 0.9)):
            config = config_of(method, seed=seed)
            rows = rows_of(config, best, epochs=4 if (seed, method) == (1, "ck") else None)
            runs.append(read_run(write_run(folder / f"{method}{seed}", config, rows)))
    material = Material(runs=tuple(runs))
    return html_page(material, group_runs(runs), {"sparsity": lambda width: draw("sparsity", material, width=width)})


def test_the_page_is_well_formed_and_every_id_is_its_own(one: str) -> None:
    page = Page(one)
    assert page.tags["svg"] == 10  # each picture for wide and for narrow screens
    assert not [name for name, times in page.ids.items() if times > 1]
    for tag, name, value in page.attributes:
        if name in ("href", "xlink:href", "src"):
            assert value.startswith(("#", "data:image/png;base64,")), (tag, value[:60])
            assert value[0] != "#" or value[1:] in page.ids
    for reference in re.findall(r"url\(#([^)]+)\)", one):
        assert reference in page.ids


def test_nothing_is_loaded_and_nothing_runs(one: str) -> None:
    page = Page(one)
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    # Namespaces are names, not places.
    places = re.findall(r"https?://[^\"'\s<)]+", one)
    assert {re.sub(r"^https?://", "", place) for place in places} <= {"www.w3.org/2000/svg", "www.w3.org/1999/xlink"}
    assert "@import" not in one
    assert "default-src 'none'" in one


def test_names_from_files_stay_text(one: str) -> None:
    page = Page(one)
    assert page.text.count("<script>alert(1)</script>") >= 3  # note, command, warning
    assert HOSTILE not in one


def test_the_page_says_what_the_run_came_to(one: str) -> None:
    text = Page(one).text
    for words in (
        "my run",
        "CK 60 % · resnet20 · digits · 10 epochs · seed 0",
        "90.00 % epoch 10, the best",
        "3.0 kB estimated, 2.7 x smaller",
        "2 thousand of 5 thousand dense",
        "layer1.0.conv2 window 8x8x3x3 576 50.00 %",
        "CK 60 % fgsm 0.01 70.00 % 68.00 to 72.00 % 100",
        "weight",
        "Made by starfire plot <here>",
    ):
        assert words in text, words


def test_colours_are_the_pages_own(one: str) -> None:
    drawn = "".join(re.findall(r"<svg.*?</svg>", one, re.DOTALL))
    for colour in ("#1b1e23", "#70757e", "#d5d9df", "#ffffff"):
        assert colour not in drawn
    assert "var(--ink)" in drawn
    assert "prefers-color-scheme:dark" in one


def test_tables_of_many_networks_are_behind_one_line(one: str) -> None:
    assert "Layers of CK 60 % (my run)" in Page(one).text
    networks = tuple(network(Path(f"{n}.pt"), f"ck 0.{n}") for n in range(1, 8))
    page = layer_tables(Material(networks=networks))
    assert page.startswith("<details class=unprinted><summary>Layers of 7 networks</summary>")
    assert page.count("<details") == 8


def test_many_runs_have_a_row_each(many: str) -> None:
    page = Page(many)
    assert page.text.startswith("4 runs of 2 experiments")
    assert "Dense dense1 1 95.00 % 10 95.00 % 0.00 % 10" in page.text
    assert "CK 60 % ck1 1 36.00 % 4 36.00 % 60.00 % 4 of 10" in page.text
    assert "Not the same in all runs: " in page.text
    assert "4 commands" in page.text


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]


def browse(page: str, folder: Path, *flags: str) -> str:
    """Open the page; returns what the browser prints."""
    assert BROWSER is not None
    (folder / "page.html").write_text(page, encoding="utf-8")
    command = [BROWSER, *FLAGS, f"--user-data-dir={folder / 'profile'}", *flags, (folder / "page.html").as_uri()]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")
@pytest.mark.parametrize("width", [390, 1100])
def test_a_browser_shows_it_without_scrolling_sideways(one: str, tmp_path: Path, width: int) -> None:
    """A frame as wide as a phone or a desk holds the page; the page around it measures."""
    measure = (
        "<script>addEventListener('load',()=>{const d=document.querySelector('iframe').contentDocument,"
        "shown=[...d.querySelectorAll('svg')].map(s=>s.getBoundingClientRect()).filter(r=>r.width>0);"
        "tables=[...d.querySelectorAll('.wide')].filter(t=>!t.closest('details')&&t.scrollWidth>t.clientWidth);"
        "document.title=[d.documentElement.scrollWidth,shown.length,Math.max(...shown.map(r=>r.right)),tables.length]"
        ".join(' ')})"
        "</script>"
    )
    frame = f'<iframe style="width:{width}px;height:900px;border:0" srcdoc="{escape(one)}"></iframe>'
    printed = browse(f"<title></title>{frame}{measure}", tmp_path, "--window-size=1300,1000", "--dump-dom")
    found = re.search(r"<title>(\d+) (\d+) ([\d.]+) (\d+)</title>", printed)
    assert found is not None
    scroll, shown, right, too_wide = (float(x) for x in found.groups())
    assert scroll <= width
    assert shown == 5
    assert right <= width
    assert too_wide == 0


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")
def test_a_browser_paints_it_dark_and_light_and_prints_it(one: str, tmp_path: Path) -> None:
    from PIL import Image

    corners = {}
    for scheme, flags in (("light", ()), ("dark", ("--force-dark-mode", "--blink-settings=preferredColorScheme=0"))):
        picture = tmp_path / f"{scheme}.png"
        browse(one, tmp_path, *flags, "--window-size=800,900", f"--screenshot={picture}")
        with Image.open(picture) as image:
            corners[scheme] = image.convert("RGB").getpixel((2, 2))
            colours = image.convert("RGB").getcolors(maxcolors=1 << 20)
        assert colours is not None
        assert len(colours) > 50  # not an empty page
    assert corners == {"light": (255, 255, 255), "dark": (0x15, 0x18, 0x1C)}
    browse(one, tmp_path, f"--print-to-pdf={tmp_path / 'page.pdf'}")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
