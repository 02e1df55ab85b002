"""The request of `starfire compare`: its options, and how lists of methods, targets and seeds are written."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from starfire_cli.errors import BadOption
from starfire_cli.numbers import parse_list, parse_number, parse_whole
from starfire_cli.options import BELOW_1, Option, option, option_of
from starfire_cli.workflows.options import OUT, RUNTIME_PANEL
from starfire_cli.workflows.train.request import TrainRequest

COMPARE_PANEL = "Comparison"
MEASURE_PANEL = "Measurements"
TRAIN_PANEL = "Training (more of train's options after --)"

SHARED = ("data", "model", "recipe", "epochs", "batch_size", "limit_train", "limit_val", "device", "workers")
"""The options of `starfire train` that are options here as well; the others are given after `--`."""


def _shared(name: str) -> Option:
    return replace(option_of(TrainRequest, name), panel=TRAIN_PANEL)


def parse_targets(flag: str, text: str) -> tuple[float, ...]:
    """`0.6,0.8` to numbers from 0 to below 1, each once. Raises BadOption."""
    targets = parse_list(flag, text, parse_number, "0.6,0.8")
    for target in targets:
        if not 0 < target <= BELOW_1:
            raise BadOption(f"{flag} {text!r}: {target:g} is no fraction of weights to prune, above 0 and below 1")
    return tuple(dict.fromkeys(targets))


def parse_seeds(flag: str, text: str) -> tuple[int, ...]:
    """`3` to seeds 0, 1 and 2; `0,4,7` (or `4,`) to those. Raises BadOption."""
    listed = "," in text
    numbers = parse_list(flag, text.rstrip(",") if listed else text, parse_whole, "0,1,2")
    if listed:
        if min(numbers) < 0:
            raise BadOption(f"{flag} {text!r}: a seed is a whole number, 0 or more")
        return tuple(dict.fromkeys(numbers))
    if not 1 <= numbers[0] <= 1000:
        raise BadOption(f"{flag} {text!r} is out of range: how many seeds, 1 to 1000, or a list such as 0,1,2")
    return tuple(range(numbers[0]))


def parse_methods(texts: tuple[str, ...]) -> tuple[str, ...]:
    """`("window,gmp:pool=global,every=50", "dense")` to specs, each once.

    Commas and semicolons separate methods. After a comma, `key=value` is an option of the method before it.
    Raises BadOption.
    """
    found: list[str] = []
    for text in texts:
        for part in text.split(";"):
            inside = False  # of a spec that has begun in this part
            for word in (word.strip() for word in part.split(",")):
                if not word:
                    continue
                if re.match(r"[\w-]+\s*=", word):
                    if not inside:
                        raise BadOption(f"--methods {text!r}: {word!r} belongs to no method; write METHOD:{word}")
                    found[-1] += f"{',' if ':' in found[-1] else ':'}{word}"
                else:
                    found.append(word)
                    inside = True
    if not found:
        raise BadOption("--methods: which ones? window,ck,dense compares three")
    return tuple(dict.fromkeys(found))


@dataclass(frozen=True, kw_only=True)
class CompareRequest:
    """One call of `starfire compare`; None means as `starfire train` or the machine says."""

    train_options: tuple[str, ...] = Option(
        argument=True,
        metavar="-- OPTIONS",
        help="After --, any other options of starfire train, for all cells.",
    ).default(())
    methods: tuple[str, ...] = option(
        (),
        "The methods, with commas between; key=value after a comma belongs to the method before it. May be repeated.",
        flags=("--methods", "--method"),
        metavar="SPEC,SPEC,...",
        panel=COMPARE_PANEL,
    )
    target: tuple[float, ...] = option(
        (0.6,),
        "The sparsities to compare at: 0.8 or 0.6,0.8.",
        flags=("--target", "--targets"),
        short="-t",
        metavar="T,T,...",
        panel=COMPARE_PANEL,
        parse=parse_targets,
    )
    seeds: tuple[int, ...] = option(
        (0, 1, 2),
        "How many seeds (3 is 0, 1 and 2), or which: 0,4,7.",
        metavar="N",
        panel=COMPARE_PANEL,
        parse=parse_seeds,
    )
    equal: str = option(
        "epochs",
        "What all have the same of: {choices}. With flops each method, and dense, has as many epochs as it takes to "
        "spend the training FLOPs of the cheapest.",
        panel=COMPARE_PANEL,
        choices=("epochs", "flops"),
    )
    checkpoint: str = option(
        "last",
        "Which network of a run is measured: {choices}. The best was chosen on the images that are counted.",
        panel=COMPARE_PANEL,
        choices=("last", "best"),
    )

    eps: str = option("0.01", "Sizes of FGSM, as in starfire attack: 0.01 or 2/255,4/255.", panel=MEASURE_PANEL)
    attack: bool = option(True, "Measure accuracy under FGSM.", flags=("--attack/--no-attack",), panel=MEASURE_PANEL)
    attack_images: int | None = option(
        None,
        "Attack only N images, spread over the classes. Default: all that are validated on.",
        metavar="N",
        panel=MEASURE_PANEL,
        low=1,
        range="images, at least 1",
    )
    pack: bool = option(True, "Measure the packed size.", flags=("--pack/--no-pack",), panel=MEASURE_PANEL)
    latency: bool = option(
        True,
        "Time one image on this CPU, dense and by live weights, once all are trained.",
        flags=("--latency/--no-latency",),
        panel=MEASURE_PANEL,
    )

    data: str | None = _shared("data").default(None)
    model: str | None = _shared("model").default(None)
    recipe: str | None = _shared("recipe").default(None)
    epochs: int | None = _shared("epochs").default(None)
    batch_size: int | None = _shared("batch_size").default(None)
    limit_train: int | None = _shared("limit_train").default(None)
    limit_val: int | None = _shared("limit_val").default(None)
    device: str | None = _shared("device").default(None)
    workers: int | None = _shared("workers").default(None)

    jobs: int | None = option(
        None,
        "Cells at a time; 1 trains in this process. Default: as many as memory and cores allow, measured on the first.",
        metavar="N",
        panel=RUNTIME_PANEL,
        low=1,
        high=256,
        range="1 to 256",
    )
    out: Path = replace(
        OUT, metavar="DIR", help="The folder of the comparison; the same command goes on in it."
    ).default(Path("runs/compare"))
    command: str = "starfire compare"
