"""`train --init` keeps dead what came in dead, and begins on what the file was made for."""

from __future__ import annotations

import itertools
import json
import math
import re
import shlex
import subprocess
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn.utils import prune

from starfire_cli.cli import main
from starfire_cli.errors import BadOption, StarfireError
from starfire_cli.formats.checkpoint.file import load, save
from starfire_cli.formats.run import Run
from starfire_cli.networks.dead_weights import find_dead_weights
from starfire_cli.networks.evaluate import evaluate
from starfire_cli.networks.title import checkpoint_title
from starfire_cli.pruning import layers_of_model
from starfire_cli.text import command_text
from starfire_cli.workflows.plot.run_files import read_run
from starfire_cli.workflows.train import loop as training
from starfire_cli.workflows.train.request import TrainRequest
from starfire_cli.workflows.train.resume import open_session
from starfire_cli.workflows.train.start import take_weights
from tests.tiny import Net

Capture = pytest.CaptureFixture[str]
TINY: dict[str, Any] = {"model": "tests.tiny:net", "limit_train": 192, "limit_val": 50, "device": "cpu", "lr": 0.05}
LAYERS = ("conv1", "conv2", "point", "fc")


def run_of(out: Path, **more: Any) -> tuple[Run, list[Any]]:
    records = list(training.train(TrainRequest(**{"epochs": 1, "era": "0:1"} | TINY | more, out=out)))
    return Run(records[-1].run), records


def notes_of(records: list[Any]) -> str:
    return "\n".join(records[0].notes)


def pruned_net(amount: float = 0.6) -> tuple[Net, int]:
    """A network pruned by torch, and how many of its weights are zero."""
    torch.manual_seed(0)
    net = Net(10)
    for name in LAYERS:
        prune.l1_unstructured(getattr(net, name), "weight", amount=amount)
        prune.remove(getattr(net, name), "weight")
    return net, sum(int((getattr(net, name).weight == 0).sum()) for name in LAYERS)


def write(road: str, net: Net, folder: Path) -> Path:
    """The network as a file, in ways by which other tools and our own write them."""
    path = folder / f"{road}.pt"
    state = net.state_dict()
    if road == "state-dict":
        torch.save(state, path)
    elif road == "half":
        torch.save({k: v.half() if v.is_floating_point() else v for k, v in state.items()}, path)
    elif road == "some-masks":
        save(path, state=state, masks={"conv2.weight": state["conv2.weight"] != 0}, meta={})
    else:
        save(path, state=state, masks={f"{name}.weight": state[f"{name}.weight"] != 0 for name in LAYERS}, meta={})
        form = ["--to", "safetensors"] if road == "to-safetensors" else []
        path = folder / f"{road}.safetensors"
        assert main(["compress", str(folder / f"{road}.pt"), *form, "-o", str(path)]) == 0
    return path


@pytest.mark.parametrize(
    ("road", "method"),
    [
        ("state-dict", "dense"),
        ("half", "window"),
        ("some-masks", "dense"),
        ("some-masks", "window"),
        ("to-safetensors", "dense"),
        ("packed", "dense"),
    ],
)
def test_what_is_zero_stays_zero(tmp_path: Path, road: str, method: str) -> None:
    net, zeros = pruned_net()
    run, records = run_of(tmp_path, init=write(road, net, tmp_path), method=method, target=0.3, optimizer="adam")
    after = load(run.last)
    for name in LAYERS:
        came, left = getattr(net, name).weight, after.state[f"{name}.weight"]
        assert not left[came == 0].count_nonzero()
        assert not torch.equal(left, came), "the others train"
        assert after.masks is not None and not after.masks[f"{name}.weight"][came == 0].any()
    assert f"{zeros:,} weights in 4 layers are dead and stay zero" in notes_of(records)


def test_a_pruned_network_is_not_called_dense(tmp_path: Path) -> None:
    net, zeros = pruned_net()
    run, _ = run_of(tmp_path / "a", init=write("to-safetensors", net, tmp_path), method="dense")
    share = zeros / sum(getattr(net, name).weight.numel() for name in LAYERS)
    assert checkpoint_title(load(run.last)) == f"pruned {share:.4g}"
    assert main(["compress", str(run.last), "-o", str(tmp_path / "packed.safetensors")]) == 0
    assert checkpoint_title(load(tmp_path / "packed.safetensors")) == f"pruned {share:.4g}"
    assert (read_run(run.path).method, read_run(run.path).target) == ("pruned", round(share, 4))
    dense, _ = run_of(tmp_path / "b", method="dense")
    assert checkpoint_title(load(dense.last)) == "dense" and read_run(dense.path).dense
    assert checkpoint_title(load(run_of(tmp_path / "c", method="ck", target=0.5)[0].last)) == "ck 0.5"


def test_zeros_that_are_let_free(tmp_path: Path) -> None:
    net, _ = pruned_net()
    run, records = run_of(
        tmp_path, init=write("some-masks", net, tmp_path), method="dense", init_zeros="free", weight_decay=0.0
    )
    after = load(run.last).state
    assert after["point.weight"][net.point.weight == 0].count_nonzero() > 0
    assert not after["conv2.weight"][net.conv2.weight == 0].count_nonzero(), "a mask is a mask"
    count = int((net.conv2.weight == 0).sum())
    assert f"{count} weights in 1 layer are dead and stay zero, by its masks" in notes_of(records)


def test_free_zeros_stay_free_when_the_run_is_resumed(tmp_path: Path) -> None:
    net, _ = pruned_net()
    path = write("state-dict", net, tmp_path)
    run = Run(tmp_path / "a")
    free = TINY | {"init": path, "method": "dense", "init_zeros": "free", "epochs": 1, "name": "a", "out": tmp_path}
    list(training.train(TrainRequest(**free, max_steps=1)))
    state = load(run.last, training=True)
    assert (state.meta.request or {})["init_zeros"] == "free" and not state.masks
    path.unlink()  # what a run began with is not asked for again
    request = TrainRequest(resume=run.path, model=TINY["model"])
    assert list(training.train(request, frozenset({"model"})))[-1].sparsity_prunable == 0


def test_a_classifier_for_other_classes_has_nothing_dead(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Net(7)
    for name in ("conv2", "fc"):
        prune.l1_unstructured(getattr(net, name), "weight", amount=0.5)
        prune.remove(getattr(net, name), "weight")
    run, records = run_of(tmp_path, init=write("state-dict", net, tmp_path), method="dense")
    after = load(run.last)
    assert after.masks is not None and set(after.masks) == {"conv2.weight"}
    assert "432 weights in 1 layer" in notes_of(records)


@pytest.mark.parametrize(
    ("zeroed", "dead", "untrained"),
    [
        ({"conv2": 0.5}, {"conv2"}, set()),
        ({"conv2": 0.005}, set(), set()),  # a few by chance
        ({"conv2": 0.005, "point": 0.5}, {"conv2", "point"}, set()),  # the few of a pruned network are pruned
        ({"conv2": 0.5, "point": 1.0}, {"conv2", "point"}, set()),  # a layer that was pruned away
        ({"point": 1.0}, set(), {"point"}),  # a layer that was never trained: nothing else is pruned
        ({"conv2": 0.5, "fc": 1.0}, {"conv2"}, {"fc"}),  # nor was a classifier that says nothing
        ({"conv2": 0.5, "fc": 0.5}, {"conv2", "fc"}, set()),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_which_zeros_count(zeroed: dict[str, float], dead: set[str], untrained: set[str], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    net = Net(10)
    layers, _ = layers_of_model(net)
    state = {layer.key: torch.ones(layer.shape, dtype=dtype) for layer in layers}
    for name, share in zeroed.items():
        flat = state[f"{name}.weight"].view(-1)
        flat[: math.ceil(share * len(flat)) if share == 1 else int(share * len(flat))] = 0
    found = find_dead_weights(state, None, layers)
    assert {key.removesuffix(".weight") for key in found.masks} == dead
    assert all(torch.equal(mask, state[key].float() != 0) for key, mask in found.masks.items())
    assert set(found.untrained) == untrained and not found.by_mask
    assert not find_dead_weights(state, None, layers, zeros=False).masks


def test_a_layer_that_is_dead_as_a_whole_stays_so(tmp_path: Path) -> None:
    net, _ = pruned_net()
    with torch.no_grad():
        net.point.weight.zero_()
    path = write("state-dict", net, tmp_path)
    for method in ("dense", "ck"):
        run, _ = run_of(tmp_path, init=path, method=method, target=0.5)
        assert not load(run.last).state["point.weight"].count_nonzero()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--init-zeros", "free"], "--init FILE"),
        (["--init", "INIT", "--init-zeros", "alive"], "unknown --init-zeros 'alive'; there are: dead, free"),
        (["--init", "INIT", "--mean", "2"], "--mean '2'"),
        (["--std", "0"], "--std '0'"),
    ],
)
def test_options_that_mean_nothing(tmp_path: Path, capsys: Capture, options: list[str], words: str) -> None:
    path = write("state-dict", Net(10), tmp_path)
    options = [str(path) if option == "INIT" else option for option in options]
    assert main(["train", "--model", "tests.tiny:net", "--dry-run", *options]) == 2
    assert words in capsys.readouterr().err


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two classes, 20 training and 40 validation images of 28 px: dark ones and light ones, with noise."""
    generator = torch.Generator().manual_seed(0)
    for part, count in (("train", 10), ("val", 20)):
        for label, name in enumerate(("dark", "it's light")):
            folder = tmp_path / "my images" / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = torch.rand(28, 28, 3, generator=generator) * 120 + 60 * label + 40
                Image.fromarray(pixels.to(torch.uint8).numpy()).save(folder / f"{number}.png")
    return tmp_path / "my images"


def right_by_hand(net: nn.Module, images: Path, mean: list[float], std: list[float]) -> int:
    """How many validation images the network gets right, by nothing but PIL and torch."""
    right = 0
    for label, folder in enumerate(sorted((images / "val").iterdir())):
        for file in sorted(folder.iterdir()):
            with Image.open(file) as image:
                pixels = torch.tensor(list(image.tobytes()), dtype=torch.float64).view(28, 28, 3) / 255
            seen = ((pixels - torch.tensor(mean)) / torch.tensor(std)).permute(2, 0, 1)[None].float()
            with torch.no_grad():
                right += int(net.eval()(seen).argmax(1).item() == label)
    return right


@pytest.fixture
def first_evaluation(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, Any]]:
    """What a run's network gets right before it is trained, and the run's session."""
    seen: list[tuple[float, Any]] = []
    epoch = training._one_epoch

    def watched(session: Any, *rest: Any) -> Generator[Any, None, Any]:
        if not seen:
            found = evaluate(session.evaluated, session.data.val)
            assert found is not None
            seen.append((found.top1, session))
        return (yield from epoch(session, *rest))

    monkeypatch.setattr(training, "_one_epoch", watched)
    return seen


def printed_command(out: str) -> list[str]:
    (line,) = [line for line in out.splitlines() if line.startswith("to fine-tune it: ")]
    words = shlex.split(line.removeprefix("to fine-tune it: "))
    assert words[0] == "starfire"
    return words[1:]


def test_the_printed_command_begins_where_the_evaluation_stood(
    tmp_path: Path,
    images: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    first_evaluation: list[tuple[float, Any]],
) -> None:
    """A state dict of others: all that is known of it stood on the line of prune-mask."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(3)
    torch.save(Net(2).state_dict(), "theirs.pth")
    mean, std = [0.7, 0.2, 0.1], [0.05, 0.5, 0.3]
    argv = ["prune-mask", "theirs.pth", "--model", "tests.tiny:net", "--data", "my images", "--image-size", "28"]
    argv += ["--mean", ",".join(map(str, mean)), "--std", ",".join(map(str, std)), "--device", "cpu"]
    assert main([*argv, "--method", "ck", "--target", "0.5", "-o", "it's pruned $HOME.pt"]) == 0
    out = capsys.readouterr().out
    pruned = Net(2)
    pruned.load_state_dict(load(tmp_path / "it's pruned $HOME.pt").state)
    right = right_by_hand(pruned, images, mean, std)
    assert f"{right / 40:.2%} after" in out
    command = printed_command(out)
    assert main(command) == 0, capsys.readouterr().err
    text = "".join(capsys.readouterr())
    top1, session = first_evaluation[0]
    assert top1 == right / 40
    config = json.loads((session.run.path / "config.json").read_text())
    assert config["data"]["mean"] == mean and config["data"]["std"] == std
    assert config["data"]["spec"] == f"folder:{images.resolve()}" and config["data"]["image_size"] == 28
    assert "from it's pruned $HOME.pt: data" in text and "from the options: model tests.tiny:net" in text


def test_images_are_scaled_for_validation_as_they_were(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, first_evaluation: list[tuple[float, Any]]
) -> None:
    """Training that cuts boxes would scale them otherwise: shorter side to 46 px, of which the middle 40 are seen."""
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(0)
    for part, label, number in itertools.product(("train", "val"), "ab", range(12)):
        file = tmp_path / "images" / part / f"class-{label}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = torch.full((64, 64, 3), 30 + 4 * number)
        pixels[:8] = pixels[-8:] = 120  # what a crop leaves out
        pixels += (torch.rand(64, 64, 3, generator=generator) * 30).to(pixels.dtype)
        Image.fromarray(pixels.to(torch.uint8).numpy()).save(file)
    torch.manual_seed(1)
    torch.save(Net(2).state_dict(), "theirs.pth")
    argv = ["prune-mask", "theirs.pth", "--model", "tests.tiny:net", "--data", "images", "--image-size", "40"]
    assert main([*argv, "--target", "0.5", "-o", "b.pt", "--device", "cpu", "--json"]) == 0
    loss = json.loads(capsys.readouterr().out)["accuracy_after"]["loss"]
    argv = ["train", "--init", "b.pt", "--method", "dense", "--model", "tests.tiny:net", "--batch-size", "24"]
    assert main([*argv, "--name", "a", "--max-steps", "1"]) == 0
    _, session = first_evaluation[0]
    assert session.data.info.augment.startswith("rrc-flip") and session.data.info.resize is None
    again = open_session(TrainRequest(resume=tmp_path / "runs" / "a", model="tests.tiny:net"), frozenset({"model"}))
    assert again.data.info.resize is None, "also when the run is resumed"
    request = TrainRequest(init=tmp_path / "b.pt", model="tests.tiny:net", method="dense", batch_size=24)
    fresh = open_session(request, frozenset())
    found = evaluate(fresh.evaluated, fresh.data.val)
    assert found is not None and found.loss == pytest.approx(loss, rel=1e-6)


def test_the_printed_command_of_our_own_file(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, first_evaluation: list[tuple[float, Any]]
) -> None:
    monkeypatch.chdir(tmp_path)
    run, _ = run_of(
        tmp_path / "a", method="dense", image_size=12, mean=(0.1, 0.2, 0.3), split_seed=5, val_fraction=0.3, epochs=2
    )
    first_evaluation.clear()
    argv = ["prune-mask", str(run.last), "--model", "tests.tiny:net", "--evaluate", "-t", "0.3", "-o", "b.pt"]
    assert main([*argv, "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert main(["train", *printed_command(out)[1:], "--max-steps", "1"]) == 0
    top1, session = first_evaluation[0]
    info = session.data.info
    assert f"{top1:.2%} after" in out and f"on {info.val_images} images" in out
    assert (info.image_size, info.val_fraction, info.split_seed) == (12, 0.3, 5)
    assert info.mean == (0.1, 0.2, 0.3)


def test_a_command_that_lacks_something_is_not_offered_as_one(tmp_path: Path, capsys: Capture) -> None:
    path = write("state-dict", Net(10), tmp_path)
    assert main(["prune-mask", str(path), "-t", "0.3", "-o", str(tmp_path / "b.pt")]) == 0
    out = capsys.readouterr().out
    assert "add --model and --data, which the file does not say" in out and "to fine-tune it: " not in out


@pytest.mark.parametrize(
    "word", ["plain.pt", "it's", "$HOME `x`", "a\nb", "\x1b[31m", "\udcff.pt", "ä b", "\\x41'\n", ""]
)
def test_a_command_is_taken_by_a_shell_as_it_was_meant(word: str) -> None:
    text = command_text(["printf", "%s.", word])
    assert text.isprintable()
    done = subprocess.run(["bash", "-c", text], capture_output=True, check=True)
    assert done.stdout == word.encode(errors="surrogateescape") + b"."


def meta_of(**data: Any) -> dict[str, Any]:
    known = {"name": "digits", "spec": "digits", "classes": [str(n) for n in range(10)], "image_size": 12}
    known |= {"mean": [0.1, 0.1, 0.1], "std": [0.9, 0.9, 0.9], "val_fraction": 0.2, "split_seed": 0}
    return {"model": {"spec": "resnet20", "num_classes": 10, "image_size": 12}, "data": known | data}


def test_options_go_before_what_the_file_says(tmp_path: Path, capsys: Capture) -> None:
    save(tmp_path / "a.pt", state=Net(10).state_dict(), masks=None, meta=meta_of())
    argv = ["train", "--init", str(tmp_path / "a.pt"), "--model", "tests.tiny:net", "--image-size", "20"]
    assert main([*argv, "--std", "0.5", "--method", "dense", "--dry-run", "--device", "cpu"]) == 0
    out = "".join(capsys.readouterr())
    assert f"from {tmp_path / 'a.pt'}: data digits (10 classes), mean 0.1; " in out
    assert "from the options: model tests.tiny:net, image size 20, std 0.5" in out


def test_what_nothing_names_is_said_to_be_a_default(tmp_path: Path) -> None:
    path = write("state-dict", Net(10), tmp_path)
    records = list(training.train(TrainRequest(**TINY, epochs=1, init=path, method="dense", dry_run=True)))
    assert "from the default, since nothing names them: data digits (10 classes)" in notes_of(records)


@pytest.mark.parametrize("spec", ["https://example.invalid/a.tar", "webdataset:s3://bucket/a.tar", "pipe:touch x"])
def test_a_url_in_a_file_is_not_opened(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, spec: str
) -> None:
    monkeypatch.setattr("starfire_cli.data.shards.remote.open_url", lambda url: pytest.fail(f"{url} was opened"))
    save(tmp_path / "a.pt", state=Net(10).state_dict(), masks=None, meta=meta_of(spec=spec))
    assert main(["train", "--init", str(tmp_path / "a.pt"), "--model", "tests.tiny:net", "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert spec in error and "--data" in error and error.count("\n") == 1


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    meta = meta_of() | {"model": {"spec": "tests.no_such_module:net"}}
    save(tmp_path / "a.pt", state=Net(10).state_dict(), masks=None, meta=meta)
    with pytest.raises(BadOption, match=r"--model tests\.no_such_module:net"):
        run_of(tmp_path, init=tmp_path / "a.pt", model=None)


def test_data_that_are_not_there_any_more(tmp_path: Path, capsys: Capture) -> None:
    save(tmp_path / "a.pt", state=Net(10).state_dict(), masks=None, meta=meta_of(spec="folder:/no/such"))
    argv = ["train", "--init", str(tmp_path / "a.pt"), "--model", "tests.tiny:net", "--method", "dense"]
    assert main([*argv, "--dry-run"]) == 1
    assert re.search(r"a.pt names cannot be opened .*/no/such.* --data PATH", capsys.readouterr().err)
    assert main([*argv, "--dry-run", "--data", "digits", "--device", "cpu"]) == 0
    save(tmp_path / "a.pt", state=Net(10).state_dict(), masks=None, meta=meta_of(classes=["a"] * 10))
    assert main([*argv, "--dry-run"]) == 1
    assert "have changed" in capsys.readouterr().err


def test_zeros_where_no_mask_is_kept_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Up(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.up = nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 4, 3)

    net = Up()
    with torch.no_grad():
        net.up.weight[:2] = 0
    torch.save(net.state_dict(), tmp_path / "a.pt")
    start = take_weights(Up(), TrainRequest(), 10, resume=None, initial=load(tmp_path / "a.pt"))
    assert [note for note in start.notes if "72 zeros of up.weight are trained again" in note]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_found_before_training(tmp_path: Path, value: float) -> None:
    net = Net(10)
    with torch.no_grad():
        next(iter(net.parameters())).view(-1)[3] = value
    torch.save(net.state_dict(), tmp_path / "a.pt")
    with pytest.raises(StarfireError, match=r"a\.pt: .* holds NaN or infinity"):
        take_weights(Net(10), TrainRequest(), 10, resume=None, initial=load(tmp_path / "a.pt"))
