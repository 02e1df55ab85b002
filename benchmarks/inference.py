"""How fast does a sparse network run on this CPU, beside the best that runs it dense?

python benchmarks/inference.py                                   # all rows, into docs/results/inference.json
python benchmarks/inference.py --rows resnet50-ck80-b1 --threads 2

Networks have random weights (time does not depend on them), pruned as the method prunes: of the K kernels that read one
input channel the weakest go, in linear layers the smallest weights. All contenders get the same float32 images, in
turns, round after round; the first run of each is not counted. The dense ones: torch in both memory layouts,
torch.compile, ONNX Runtime and OpenVINO where they are installed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
import torchvision
from torch import Tensor, nn

import starfire_cli
from benchmarks._common import Results
from starfire_cli.models import build_model
from starfire_cli.pruning import CONV_METHODS, LINEAR_METHODS, Pruner, layers_of_model
from starfire_cli.pruning.era import Era

#       name                  network         side method    target batch
ROWS = [
    ("resnet50-ck80-b1", "resnet50", 224, "ck", 0.8, 1),
    ("resnet50-ck80-b16", "resnet50", 224, "ck", 0.8, 16),
    ("resnet50-ck90-b1", "resnet50", 224, "ck", 0.9, 1),
    ("resnet50-ck90-b16", "resnet50", 224, "ck", 0.9, 16),
    ("resnet50-ck60-b1", "resnet50", 224, "ck", 0.6, 1),
    ("resnet50-window78-b1", "resnet50", 224, "window", 0.7, 1),
    ("resnet20-ck80-b64", "resnet20", 32, "ck", 0.8, 64),
    ("resnet18-ck80-b1", "resnet18", 224, "ck", 0.8, 1),
    ("vgg16_bn-ck80-b1", "vgg16_bn", 224, "ck", 0.8, 1),
    ("mobilenet_v2-ck80-b1", "mobilenet_v2", 224, "ck", 0.8, 1),
]
Contender = Callable[[Tensor], object]


def network(name: str, side: int, method: str, target: float) -> nn.Module:
    """Pruned to `target` in one go."""
    torch.manual_seed(0)
    if name == "resnet20":
        model = build_model(name, num_classes=10, image_size=side)
    else:
        model = getattr(torchvision.models, name)()
    pruner = Pruner(
        model,
        layers_of_model(model)[0],
        conv=CONV_METHODS.build(method),
        linear=LINEAR_METHODS.build("fine"),
        target=target,
        era=Era(first_step=0, last_step=1),
    )
    pruner.after_step(1)
    return model.eval()


def contenders(model: nn.Module, images: Tensor, folder: Path) -> tuple[dict[str, Contender], dict[str, str]]:
    """All that can run here, by name; and why others cannot."""
    last = torch.channels_last
    found: dict[str, Contender] = {"torch": model}
    import copy

    twin = copy.deepcopy(model).to(memory_format=last)
    found["torch channels_last"] = lambda x: twin(x.contiguous(memory_format=last))
    missing: dict[str, str] = {}
    for name, make in (("torch.compile", _compiled), ("ONNX Runtime", _onnxruntime), ("OpenVINO", _openvino)):
        try:
            run = make(model, images, folder)
            run(images)
            found[name] = run
        except Exception as error:  # noqa: BLE001 - whatever a compiler or an engine may raise
            missing[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:100] if str(error) else ''}"
    found["starfire"] = starfire_cli.sparsify(model)
    return found, missing


def _compiled(model: nn.Module, images: Tensor, _: Path) -> Contender:
    return torch.compile(model, fullgraph=True)


def _exported(model: nn.Module, images: Tensor, folder: Path) -> Path:
    file = folder / "model.onnx"
    if not file.exists():
        torch.onnx.export(model, (images,), file, dynamo=True, verbose=False)
    return file


def _onnxruntime(model: nn.Module, images: Tensor, folder: Path) -> Contender:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(_exported(model, images, folder)), options, ["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x.numpy()})


def _openvino(model: nn.Module, images: Tensor, folder: Path) -> Contender:
    import openvino

    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.compile_model(_exported(model, images, folder), "CPU", settings)
    return lambda x: compiled(x.numpy())


def measured(name: str, net: str, side: int, method: str, target: float, batch: int, seconds: float) -> dict[str, Any]:
    """Medians and ninetieth percentiles in milliseconds, and what ours gains over the best dense one."""
    model, images = network(net, side, method, target), torch.rand(batch, 3, side, side)
    weights = [p for p in model.parameters() if p.ndim > 1]
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        found, missing = contenders(model, images, Path(folder))
        sparse, expected = found["starfire"](images), model(images)
        assert isinstance(sparse, Tensor)
        taken: dict[str, list[float]] = {name: [] for name in found}
        for run in found.values():
            run(images)
        started = time.perf_counter()
        while time.perf_counter() - started < seconds * len(found) or len(taken["starfire"]) < 5:
            for name_, run in found.items():
                begun = time.perf_counter()
                run(images)
                taken[name_].append(1000 * (time.perf_counter() - begun))
    medians = {name: statistics.median(times) for name, times in taken.items()}
    best = min((v, k) for k, v in medians.items() if k != "starfire")
    return {
        "sparsity": round(1 - sum(int(w.count_nonzero()) for w in weights) / sum(w.numel() for w in weights), 4),
        "median_ms": {name: round(v, 2) for name, v in medians.items()},
        "p90_ms": {name: round(statistics.quantiles(times, n=10)[-1], 2) for name, times in taken.items()},
        "rounds": len(taken["starfire"]),
        "best_dense": best[1],
        "speedup": round(best[0] / medians["starfire"], 2),
        "max_relative_difference": float((sparse - expected).abs().max() / expected.abs().max()),
        "not_run": missing,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="*", default=[row[0] for row in ROWS])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=3.0, help="for each contender of a row")
    parser.add_argument("--out", type=Path, default=Path("docs/results/inference.json"))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    results = Results(given.out, torch.device("cpu"))
    for row in ROWS:
        if row[0] in given.rows:
            results.step(row[0], lambda row=row: measured(*row, given.seconds))


if __name__ == "__main__":
    main()
