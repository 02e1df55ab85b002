"""Display of `starfire inspect`: the paper's figure 5 as a table, and totals, fitted to the console's width."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from starfire_cli.records.inspect import Inspection, LayerFinding
from starfire_cli.report.bars import bar, columns
from starfire_cli.text import printable, shape_text, size_text

# Heading, whether numbers go to the right, and how much the column is wanted: in a narrow terminal the last wish goes
# first. The order is that of the table.
_COLUMNS: tuple[tuple[str, bool, int], ...] = (
    ("layer", False, 0),
    ("kind", False, 7),
    ("shape", False, 4),
    ("weights", True, 5),
    ("zeros", True, 6),
    ("sparsity", True, 1),
    ("", False, 2),
    ("structure", False, 3),
    ("kernels", True, 8),
    ("out", True, 9),
    ("in", True, 10),
    ("kept per window", False, 11),
)


def show_inspection(console: Console, found: Inspection, layers: Sequence[LayerFinding]) -> None:
    """Shows the head, a table of `layers`, the totals (always of all layers), and problems."""
    say = _sayer(console)
    say(f"{found.path}: {_FORMATS.get(found.format, found.format)}, {size_text(found.bytes_file)}")
    for line in _meta_lines(found):
        say(line)
    for note in found.notes:
        say(f"note: {note}")
    if layers:
        show_table(console, _COLUMNS, [_row(layer, console) for layer in layers])
    if len(layers) < len(found.layers):
        say(f"{len(layers)} of {len(found.layers)} layers are listed; the totals are of all")
    for line in _totals(found):
        say(line)
    for line in problems(found):
        console.print(Text(printable(line, 2000), style="bold yellow"))


def show_table(console: Console, wanted: Sequence[tuple[str, bool, int]], rows: Sequence[Sequence[str]]) -> set[int]:
    """Shows a table of the columns that fit; the least important are left out first, the first column cut if it must
    be. A heading may have several lines.

    Returns the places of the columns that are shown.
    """
    widths = [
        max(cell_len(text) for text in (*wanted[i][0].split("\n"), *(row[i] for row in rows)))
        for i in range(len(wanted))
    ]
    chosen: set[int] = set()
    room = console.width
    for i in sorted(range(len(wanted)), key=lambda i: wanted[i][2]):
        least = min(widths[i], 24) if i == 0 else widths[i]
        if i == 0 or least + 2 <= room:
            chosen.add(i)
            room -= least + 2
        else:
            break
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0), pad_edge=False)
    for i in sorted(chosen):
        heading, right, _ = wanted[i]
        table.add_column(
            heading, justify="right" if right else "left", no_wrap=True, overflow="ellipsis" if i == 0 else "crop"
        )
    for row in rows:
        table.add_row(*(Text(row[i]) for i in sorted(chosen)))
    console.print(table)
    return chosen


def problems(found: Inspection) -> list[str]:
    """Contradictions and unusable parts, a line each."""
    lines = []
    if not found.digest_matches:
        lines.append("the masks are not those that the file's digest was taken of")
    for x in found.layers:
        if x.revived:
            lines.append(f"{x.name}: {x.revived:,} weights that the mask calls dead are not zero; the mask was counted")
        if x.idle:
            lines.append(f"{x.name}: {x.idle:,} weights that the mask calls alive are zero; the mask was counted")
        if x.nonfinite:
            lines.append(f"{x.name}: {x.nonfinite:,} live weights are NaN or infinite")
    return lines


def _row(layer: LayerFinding, console: Console) -> list[str]:
    kind = layer.kind
    if layer.groups > 1:
        kind = "depthwise" if layer.shape[1] == 1 else f"{kind} /{layer.groups}"
    convolution = layer.kind != "linear"
    return [
        printable(layer.name, 80),
        kind,
        shape_text(layer.shape),
        f"{layer.weights:,}",
        f"{layer.zeros:,}",
        f"{layer.sparsity:.4f}",
        bar(layer.sparsity, ascii_only=console.options.ascii_only),
        layer.structure,
        f"{layer.dead_kernels:,}" if convolution else "",
        f"{layer.dead_outputs:,}",
        f"{layer.dead_inputs:,}",
        _windows(layer.per_window, console),
    ]


def _windows(counts: Sequence[int], console: Console) -> str:
    """Counts of live weights a window: `4:36,864` where few counts occur or nothing can be drawn; else a bar chart."""
    told = " ".join(f"{kept}:{count:,}" for kept, count in enumerate(counts) if count)
    short = sum(map(bool, counts)) <= 2 or not console.is_terminal or console.options.ascii_only
    return told if short else f"0{columns(counts)}{len(counts) - 1}"


def _totals(found: Inspection) -> list[str]:
    lines = [
        f"sparsity {found.sparsity_prunable:.4f} of {found.prunable:,} prunable weights ({found.zeros:,} dead), "
        f"{found.sparsity_total:.4f} of all {found.parameters:,} parameters"
    ]
    if found.macs and found.input:
        dense, left = found.macs
        lines.append(
            f"multiply-accumulates at {shape_text(found.input)}: {dense:,} dense, {left:,} by live weights "
            f"({left / max(1, dense):.1%})"
        )
    else:
        lines.append("multiply-accumulates need a model: --model SPEC")
    lines.append(
        f"bytes: {size_text(found.bytes_dense)} dense, about {size_text(found.bytes_packed)} packed, "
        f"entropy bound {size_text(found.bytes_bound)}"
    )
    if found.masks_present:
        masked = sum(x.masked for x in found.layers)
        lines.append(f"masks: {masked} of {len(found.layers)} layers have one, digest {found.digest}")
    else:
        lines.append("masks: none in the file; zeros were counted")
    lines += [f"not prunable: {name} ({reason})" for name, reason in found.left_out[:8]]
    if len(found.left_out) > 8:
        lines.append(f"not prunable: {len(found.left_out) - 8} more (--json lists them)")
    return lines


def _meta_lines(found: Inspection) -> list[str]:
    """The metadata in a line or two; empty where there are none."""
    meta = found.meta
    said = []
    if (name := found.model or meta.model.spec) is not None:
        said.append(str(name))
    if (data := meta.data).name is not None:
        said.append(f"{data.name} ({len(data.classes or ())} classes, {data.image_size} px)")
    if meta.pruning.method is not None:
        pruning = meta.pruning
        said.append(
            f"{pruning.method}, fc {pruning.fc}, "
            + ("no target" if pruning.target is None else f"target {pruning.target}")
            + (f", era {':'.join(f'{x:g}' for x in pruning.era)}" if pruning.era is not None else "")
        )
    shown = (meta.metrics.val_top1, "top-1"), (meta.metrics.val_top5, "top-5")
    said += [f"{name} {share:.2%}" for share, name in shown if share is not None]
    if meta.metrics.epoch is not None:
        said.append(f"epoch {meta.metrics.epoch}")
    return ["; ".join(said)] if said else []


def _sayer(console: Console) -> Callable[[str], None]:
    def say(line: str) -> None:
        console.print(Text(printable(line, 2000)))

    return say


_FORMATS = {
    "starfire": "starfire checkpoint",
    "torch": "PyTorch file",
    "torch-legacy": "PyTorch file of the legacy format",
    "safetensors": "safetensors file",
    "sharded": "sharded checkpoint",
    "packed": "packed starfire checkpoint",
}
