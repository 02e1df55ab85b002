"""The command `starfire attack`."""

from __future__ import annotations

import json
import shlex
import sys

import typer

from starfire_cli.commands.attack_options import (
    Against,
    AgainstModel,
    AgainstWeights,
    Amp,
    AttackSpec,
    BatchSize,
    Control,
    Eps,
    Fresh,
    Images,
    ImageSize,
    Model,
    Norm,
    Plot,
    Quiet,
    Restarts,
    SaveImages,
    Steps,
    StepSize,
    Transfer,
)
from starfire_cli.commands.options import (
    CheckpointPath,
    DataSpec,
    Device,
    Json,
    Mean,
    OutputPath,
    Seed,
    Std,
    Weights,
    Workers,
)
from starfire_cli.values import parse_number


def attack(
    checkpoint: CheckpointPath = None,
    attack: AttackSpec = "fgsm",
    eps: Eps = None,
    norm: Norm = None,
    steps: Steps = None,
    step_size: StepSize = None,
    restarts: Restarts = None,
    against: Against = None,
    transfer: Transfer = False,
    control: Control = True,
    data: DataSpec = None,
    images: Images = None,
    model: Model = None,
    against_model: AgainstModel = None,
    weights: Weights = None,
    against_weights: AgainstWeights = None,
    mean: Mean = None,
    std: Std = None,
    image_size: ImageSize = None,
    batch_size: BatchSize = None,
    workers: Workers = 2,
    device: Device = "auto",
    amp: Amp = False,
    seed: Seed = 0,
    out: OutputPath = None,
    fresh: Fresh = False,
    plot: Plot = False,
    save_images: SaveImages = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure how robust a network is against attacks of its input, and whether another one is more so."""
    from starfire_cli.errors import BadOption
    from starfire_cli.report.attack import display, names
    from starfire_cli.report.console import say
    from starfire_cli.values import parse_channels
    from starfire_cli.workflows.attack.run import AttackRequest
    from starfire_cli.workflows.attack.run import attack as run_attack

    try:
        step = None if step_size is None else parse_number(step_size)
    except ValueError:
        raise BadOption(f"--step-size {step_size!r} is no number; 0.01 and 2/255 are") from None
    request = AttackRequest(
        checkpoint=checkpoint,
        against=against,
        transfer=transfer,
        attack=attack,
        eps=eps,
        options={"norm": norm, "steps": steps, "step_size": step, "restarts": restarts},
        control=control,
        data=data,
        images=images,
        model=model,
        against_model=against_model,
        weights=weights,
        against_weights=against_weights,
        mean=parse_channels(mean, "--mean"),
        std=parse_channels(std, "--std"),
        image_size=image_size,
        batch_size=batch_size,
        workers=workers,
        device=device,
        amp=amp,
        seed=seed,
        fresh=fresh,
        out=out,
        save_images=save_images,
        command=shlex.join(["starfire", *sys.argv[1:]]),
    )
    try:
        report = display(run_attack(request), to_stderr=as_json, quiet=quiet)
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command goes on where this one stopped", err=True)
        raise
    if plot:
        from starfire_cli.report.plot.figures.robustness import robustness_figure
        from starfire_cli.report.plot.saving import save_figures

        called = names(report)
        figure = robustness_figure(
            {called[r.file]: r.points for r in report.results},
            controls={called[r.file]: r.controls["noise"] for r in report.results if "noise" in r.controls},
            attack=report.attack,
            norm=report.norm,
        )
        picture = report.results[0].file.with_suffix(".png")
        save_figures({"robustness": figure}, picture, read=[r.path for r in report.results])
        if not quiet:
            say(f"written {picture}", err=as_json)
    if as_json:
        typer.echo(json.dumps(report.document))
