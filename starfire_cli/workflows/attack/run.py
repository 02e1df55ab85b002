"""Measures the robust accuracy of one network, or of two on the same images (paper, section 3.2, table 3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from starfire_cli import runtime
from starfire_cli.attacks import Attack, Size
from starfire_cli.data import DataInfo, DataOptions, Split, open_val
from starfire_cli.errors import BadOption
from starfire_cli.formats.checkpoint import file as files
from starfire_cli.formats.checkpoint.record import Checkpoint
from starfire_cli.formats.overwriting import files_of, refuse_overwriting
from starfire_cli.formats.png import check_folder
from starfire_cli.formats.robustness import robustness_path
from starfire_cli.formats.run import find_checkpoint
from starfire_cli.networks.restore import RestoredModel, restore_model
from starfire_cli.options import check
from starfire_cli.records.attack import AttackRecord, AttackReport, AttackStarted
from starfire_cli.workflows.attack import verdict as verdict
from starfire_cli.workflows.attack.batch_size import images_that_fit, largest_useful_batch
from starfire_cli.workflows.attack.cached import SweepPlan, spec_of
from starfire_cli.workflows.attack.choice import choose_attack
from starfire_cli.workflows.attack.image_sheet import save_sheets
from starfire_cli.workflows.attack.request import AttackRequest

_AMP = (
    "--amp: the network runs in bfloat16, which rounds logits and gradients to 8 bits; "
    "hold these accuracies only against others with --amp"
)


def attack(request: AttackRequest) -> Iterator[AttackRecord]:
    """Attacks one network or two; yields progress and at last the report, which by then is on disk.

    Raises:
        BadOption, StarfireError: one line: what cannot be done, and what would work.
    """
    check(request)
    if request.against_weights is not None and request.against is None:
        raise BadOption(f"--against-weights {request.against_weights} belongs to --against CHECKPOINT")
    if request.transfer and request.against is None:
        raise BadOption("--transfer shows each network the images made against the other; it needs --against")
    chosen, sizes = choose_attack(request.attack, request.eps, request.own_options)
    if request.save_images is not None:
        check_folder(request.save_images)
    setting = _open(request)
    plans = _plans(request, setting, chosen, sizes)
    yield AttackStarted(
        attack=plans[0].spec,
        data=setting.info.name,
        images=len(setting.split),
        batch_size=setting.chunk,
        notes=(
            *_read(setting.networks),
            *(note for plan in plans for note in plan.notes),
            *setting.info.notes,
            *([_AMP] if request.amp else []),
        ),
    )
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext
    if request.amp:
        autocast = lambda: torch.autocast(setting.device.type, dtype=torch.bfloat16)  # noqa: E731
    for plan in plans:
        yield from plan.run(
            setting.split, seed=request.seed, loaded=setting.loaded, chunk=setting.chunk, autocast=autocast
        )
    results = tuple(
        plan.result(other if request.transfer else None) for plan, other in zip(plans, reversed(plans), strict=True)
    )
    pairs = verdict.pairs(plans[0].tallies, plans[1].tallies, sizes, request.seed) if len(plans) == 2 else ()
    rows = [verdict.document(result) for result in results]
    if pairs:
        plans[1].write(rows[1], complete=True)
        rows[0] |= {"against": rows[1], "pairs": [verdict.pair_as_plain(row) for row in pairs]}
    document = plans[0].write(rows[0], complete=True)
    saved: list[Path] = []
    notes = list(dict.fromkeys(note for plan in plans for note in plan.attack_notes))
    if request.save_images is not None:
        saved, remeasured = save_sheets(
            request.save_images,
            setting.networks[0].model,
            setting.split,
            chosen,
            sizes,
            request.seed,
            setting.info.classes,
        )
        notes += remeasured
    yield AttackReport(
        attack=plans[0].spec,
        norm=chosen.norm,
        results=results,
        pairs=pairs,
        document=document,
        saved=tuple(saved),
        notes=tuple(notes),
    )


def _read(networks: tuple[RestoredModel, ...]) -> list[str]:
    """Notes from reading the checkpoints, with their names where there are two."""
    names = [f"{network.path}: " if len(networks) > 1 else "" for network in networks]
    return [name + note for name, network in zip(names, networks, strict=True) for note in network.notes]


@dataclass(frozen=True, kw_only=True)
class _Setting:
    """The conditions that both networks share."""

    info: DataInfo
    split: Split
    networks: tuple[RestoredModel, ...]
    loaded: int
    chunk: int
    device: torch.device


def _open(request: AttackRequest) -> _Setting:
    device = runtime.pick_device(request.device)
    first = files.load(find_checkpoint(request.checkpoint), weights=request.weights)
    second = None
    if request.against is not None:
        second = files.load(find_checkpoint(request.against), weights=request.against_weights)
    known = first.meta.data.info()
    loaded = request.batch_size or largest_useful_batch(
        device, request.image_size or (224 if known is None else known.image_size)
    )
    options = DataOptions(
        eval_batch_size=loaded,
        image_size=request.image_size,
        device=device,
        workers=request.workers,
        limit_val=request.images,
        limit_seed=request.seed,
    )
    info, split = open_val(first.meta.data.values, request.data, options)
    silent = second is not None and not second.meta.data.values
    networks = [
        restore_model(
            first,
            device,
            info,
            model=request.model,
            # What was given for a second network that says nothing is not forced on a first one that does.
            mean=None if silent and first.meta.data.mean is not None else request.mean,
            std=None if silent and first.meta.data.std is not None else request.std,
        ),
        *([_second(request, second, info, device)] if second is not None else []),
    ]
    chunk = loaded
    if request.batch_size is None:
        chunk = min(images_that_fit(network.model, device, info.image_size, loaded) for network in networks)
    return _Setting(info=info, split=split, networks=tuple(networks), loaded=loaded, chunk=chunk, device=device)


def _second(request: AttackRequest, checkpoint: Checkpoint, info: DataInfo, device: torch.device) -> RestoredModel:
    """The network to compare with: by its own metadata where it has any, else by the options given for the first."""
    own_spec, own_data = checkpoint.meta.model.spec, checkpoint.meta.data
    return restore_model(
        checkpoint,
        device,
        info,
        model=request.against_model or (request.model if own_spec in (None, request.model) else None),
        mean=None if own_data.mean is not None else request.mean,
        std=None if own_data.std is not None else request.std,
    )


def _plans(request: AttackRequest, setting: _Setting, chosen: Attack, sizes: tuple[Size, ...]) -> list[SweepPlan]:
    """A plan for each network, with a result file of its own."""
    # Runs that differ on purpose do not replace one another's files.
    suffix = f"-n{len(setting.split)}" if request.images is not None else ""
    suffix += f"-{request.image_size}px" if request.image_size is not None else ""
    suffix += f"-seed{request.seed}" if request.seed else ""
    suffix += "-amp" if request.amp else ""
    paths: list[Path] = []
    for network in setting.networks:
        path = robustness_path(network.path, spec_of(chosen) + suffix)
        if request.out is not None:
            if request.out.suffix.lower() == ".png":
                raise BadOption(f"--out {request.out} is for the result, which is JSON; --plot draws beside it")
            path = paths[0] if paths else request.out
        paths.append(path.with_name(f"{path.stem}.against{path.suffix}") if path in paths else path)
    for path in paths:
        refuse_overwriting(path, [file for network in setting.networks for file in files_of(network.path)])
    settings = {
        "data": setting.info.spec,
        "image_size": setting.info.image_size,
        "split": [setting.info.val_fraction, setting.info.split_seed],
        "images": len(setting.split),
        "seed": request.seed,
        "amp": request.amp,
        "device": setting.device.type,
    }
    facts = {
        "norm": chosen.norm,
        "command": request.command,
        "batch_size": setting.chunk,
        "versions": runtime.versions(),
        "hardware": runtime.hardware(setting.device),
    }
    return [
        SweepPlan(
            network,
            chosen,
            sizes,
            controls=request.control,
            settings=settings,
            path=path,
            fresh=request.fresh,
            facts=facts,
            other=other if request.transfer else None,
        )
        for network, other, path in zip(setting.networks, reversed(setting.networks), paths, strict=True)
    ]
