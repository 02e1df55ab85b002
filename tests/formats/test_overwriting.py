"""A command refuses to write over what it reads, however that is called."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from starfire_cli.cli import main
from starfire_cli.errors import BadOption, StarfireError
from starfire_cli.formats.atomic import check_writable, write_text
from starfire_cli.formats.checkpoint.file import save
from starfire_cli.formats.overwriting import refuse_overwriting
from tests.helpers.plot_runs import config_of, rows_of, write_attack, write_run
from tests.tiny import Net

Capture = pytest.CaptureFixture[str]
LINKS = ("same", "dotted", "symbolic", "hard")


def other_name(path: Path, how: str) -> Path:
    """The same file under another name in the same folder, with the same ending."""
    link = path.with_name(f"link{path.suffix}")
    if how == "symbolic":
        link.symlink_to(path.name)
    elif how == "hard":
        os.link(path, link)
    return link if how in ("symbolic", "hard") else path.parent / ".." / path.parent.name / path.name


def refused(capsys: Capture, folder: Path, arguments: list[str], out: Path, noun: str, option: str = "--out") -> None:
    """The command fails with one line that names the file, and nothing in the folder has changed."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert main([*arguments, option, str(out)]) == 2
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1] == f"error: {option} {out} is {noun} itself; give another name"
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "here").mkdir()
    return tmp_path / "here"


@pytest.mark.parametrize(
    ("arguments", "how"),
    [
        *((["prune-mask", "--target", "0.5"], how) for how in LINKS),
        *((["compress"], how) for how in LINKS),
        (["compress", "--unpack"], "hard"),
        (["compress", "--to", "safetensors"], "symbolic"),
        (["compress", "--to", "prune"], "hard"),
        (["compress", "--to", "bitmask"], "same"),
    ],
)
def test_the_checkpoint(folder: Path, capsys: Capture, arguments: list[str], how: str) -> None:
    state = Net(10).state_dict()
    path = folder / "a.pt"
    save(path, state=state, masks={"conv2.weight": torch.rand(12, 8, 3, 3) > 0.5}, meta={})
    if {"safetensors", "bitmask"} & set(arguments) or arguments == ["compress"]:
        path = folder / "a.safetensors"
        save_file({key: value.contiguous() for key, value in state.items()}, path)
    elif "--unpack" in arguments:
        packed = folder / "packed.safetensors"
        assert main(["compress", str(path), "-o", str(packed)]) == 0
        path = packed.rename(folder / "packed.pt")  # told by its content
    capsys.readouterr()
    refused(capsys, folder, [*arguments, str(path)], other_name(path, how), "the checkpoint")


def test_the_shards_of_a_checkpoint(folder: Path, capsys: Capture) -> None:
    state = Net(10).state_dict()
    names = {key: f"part-{number % 2}.bin" for number, key in enumerate(state)}
    for shard in set(names.values()):
        torch.save({key: state[key] for key, name in names.items() if name == shard}, folder / shard)
    index = folder / "model.bin.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    for out in (index, folder / "part-0.bin", folder / "part-1.bin"):
        refused(capsys, folder, ["prune-mask", "--target", "0.5", str(index)], out, "the checkpoint")


def test_the_name_that_is_chosen_where_none_is_given(folder: Path, capsys: Capture) -> None:
    torch.save(Net(10).state_dict(), folder / "net.th")
    (folder / "net-window-0.5.pt").symlink_to("net.th")
    before = (folder / "net.th").read_bytes()
    assert main(["prune-mask", "--target", "0.5", str(folder / "net.th")]) == 2
    assert "is the checkpoint itself" in capsys.readouterr().err and (folder / "net.th").read_bytes() == before


@pytest.mark.parametrize("which", ["first", "against"])
def test_the_networks_of_an_attack(folder: Path, capsys: Capture, which: str) -> None:
    paths = {name: folder / f"{name}.json" for name in ("first", "against")}  # a name does not say what is inside
    for path in paths.values():
        torch.save(Net(10).state_dict(), path)
    arguments = ["attack", str(paths["first"]), "--against", str(paths["against"]), "--model", "tests.tiny:net"]
    arguments += ["--mean", "0.5", "--std", "0.5", "--data", "digits", "--device", "cpu", "--images", "4", "--fresh"]
    refused(capsys, folder, arguments, paths[which], "the checkpoint")


@pytest.mark.parametrize(
    ("name", "how"),
    list(zip(["config.json", "metrics.jsonl", "best.pt", "best.attack-fgsm.json"], LINKS, strict=True)),
)
@pytest.mark.parametrize("option", ["--html", "--out"])
def test_the_runs_of_a_picture(folder: Path, capsys: Capture, name: str, how: str, option: str) -> None:
    config = config_of()
    run = write_run(folder / "run", config, rows_of(config))
    save(run / "best.pt", state=Net(10).state_dict(), masks=None, meta={})
    write_attack(run / "best.attack-fgsm.json")
    arguments = ["plot", str(run), *(["--table", "1", "--format", "csv"] if option == "--out" else [])]
    refused(capsys, folder, arguments, other_name(run / name, how), "what is shown", option)


def test_pictures_that_are_named_like_what_is_shown(folder: Path, capsys: Capture) -> None:
    torch.save(Net(10).state_dict(), folder / "p-layers.png")
    before = (folder / "p-layers.png").read_bytes()
    arguments = ["plot", str(folder / "p-layers.png"), "--kind", "layers,window", "--out", str(folder / "p.png")]
    assert main(arguments) == 2
    assert "p-layers.png is what is shown itself" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["p-layers.png"]
    assert (folder / "p-layers.png").read_bytes() == before


def test_the_weights_that_a_run_begins_with(folder: Path, capsys: Capture) -> None:
    """`--resume auto` takes up a folder that is there; what lies in it may be what `--init` names."""
    (folder / "a").mkdir()
    torch.save(Net(10).state_dict(), folder / "a" / "eliminated.pt")
    arguments = ["train", "--model", "tests.tiny:net", "--resume", "auto", "--name", "a", "--out", str(folder)]
    before = (folder / "a" / "eliminated.pt").read_bytes()
    assert main([*arguments, "--init", str(folder / "a" / "eliminated.pt"), "--device", "cpu"]) == 2
    assert "is the checkpoint itself" in capsys.readouterr().err
    assert [path.name for path in (folder / "a").iterdir()] == ["eliminated.pt"]
    assert (folder / "a" / "eliminated.pt").read_bytes() == before


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "last.pt", "best.pt"])
def test_a_runs_own_files_are_written_by_train_alone(tmp_path: Path, name: str) -> None:
    for file in ("config.json", "metrics.jsonl", "last.pt", "best.pt"):
        (tmp_path / file).write_bytes(b"{}")
    (tmp_path / "link").symlink_to(tmp_path / name)
    for output in (tmp_path / name, tmp_path / "link"):
        with pytest.raises(BadOption, match=r"a file of the run .* give another name"):
            refuse_overwriting(output, [])
    refuse_overwriting(tmp_path / name, [], own_run=True)
    refuse_overwriting(tmp_path / "pruned.pt", [])


@pytest.mark.parametrize("kind", ["fifo", "device"])
def test_what_is_no_plain_file_is_not_replaced(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    if kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to(os.devnull)
    for write in (lambda: check_writable(path), lambda: write_text(path, "lost")):
        with pytest.raises(StarfireError, match="device, pipe or socket, which is not replaced"):
            write()
    assert not path.is_file()
