"""Measures a trained network: its packed size, its accuracy under FGSM, its latency on this CPU."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from statistics import median

from starfire_cli.data.finding import only_asked
from starfire_cli.errors import StarfireError
from starfire_cli.networks.model_spec import runs_code
from starfire_cli.records.attack import AttackProgress, AttackReport
from starfire_cli.records.bench import BatchTimings
from starfire_cli.records.compare import Latency, Robustness
from starfire_cli.records.compress import Compressed
from starfire_cli.workflows.train.request import TrainRequest

_DENSE, _SPARSE = ("torch", "torch-channels-last"), "starfire"
_SECONDS = 1.0  # of timing, for each engine


def packed_size(checkpoint: Path) -> int:
    """Bytes of the packed file, which is written beside the checkpoint and read back. Raises StarfireError."""
    from starfire_cli.workflows.compress.request import CompressRequest
    from starfire_cli.workflows.compress.run import compress

    *_, packed = compress(CompressRequest(checkpoint=checkpoint))
    assert isinstance(packed, Compressed)
    return packed.packed.packed_bytes


def robustness(
    checkpoint: Path, eps: str, request: TrainRequest, images: int | None
) -> Generator[float, None, Robustness]:
    """Accuracy under FGSM at eps 0 and at each of `eps`; yields the share that is done.

    Args:
        checkpoint: the network.
        eps: as in `starfire attack`.
        request: by which it was trained.
        images: how many to attack; None for all that it was validated on.

    Raises BadOption, StarfireError.
    """
    from starfire_cli.workflows.attack.request import AttackRequest
    from starfire_cli.workflows.attack.run import attack

    # What a file alone never makes happen is said again: running code, going to the network.
    model, data = request.model, request.data
    records = attack(
        AttackRequest(
            checkpoint=checkpoint,
            eps=f"0,{eps}",
            control=False,
            images=images or request.limit_val,
            model=model if model is not None and runs_code(model) else None,
            data=data if data is not None and only_asked(data) else None,
            device=request.device,
            workers=request.workers,
            command=f"starfire attack {checkpoint} --eps 0,{eps} --no-control",
        )
    )
    for record in records:
        if isinstance(record, AttackProgress):
            yield record.done / max(1, record.total)
        elif isinstance(record, AttackReport):
            (result,) = record.results
            return Robustness(
                attack=record.attack,
                images=result.clean.images,
                labels=tuple(point.label for point in result.points),
                points=tuple((point.eps, point.top1) for point in result.points),
            )
    raise AssertionError("a workflow ends with its report or raises")


def latency(checkpoint: Path, request: TrainRequest) -> Latency:
    """Median seconds of one image, dense and by live weights, in turns. Raises StarfireError."""
    from starfire_cli.workflows.bench.request import BenchRequest
    from starfire_cli.workflows.bench.run import bench

    model = request.model if request.model is not None and runs_code(request.model) else None
    asked = BenchRequest(checkpoint=checkpoint, batch="1", seconds=_SECONDS, compile=False, model=model)
    found, threads = None, 1
    for record in bench(asked, engines=(*_DENSE, _SPARSE)):
        if isinstance(record, BatchTimings):
            found = {timing.name: timing for timing in record.timings}
        else:
            threads = getattr(record, "threads", threads)
    assert found is not None
    dense = [timing for name in _DENSE if (timing := found[name]).counts]
    ours = found[_SPARSE]
    if not dense:
        raise StarfireError(f"{checkpoint}: the dense network was not timed")
    problem = ours.problem or (None if ours.counts else "its outputs are not those of the dense network")
    return Latency(
        dense=min(median(timing.calls) for timing in dense),
        sparse=None if problem else ours.median,
        problem=problem,
        threads=threads,
    )
