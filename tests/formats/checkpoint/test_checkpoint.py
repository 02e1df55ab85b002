"""Checkpoints: what is saved is what is loaded, and a save that fails leaves the old file."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from starfire_cli.errors import Mismatch, StarfireError
from starfire_cli.formats import atomic
from starfire_cli.formats.atomic import atomic_write, check_writable
from starfire_cli.formats.checkpoint.file import load, save


def make_state() -> dict[str, torch.Tensor]:
    return {
        "conv.weight": torch.randn(4, 3, 3, 3),
        "bn.num_batches_tracked": torch.tensor(7),
        "fc.weight": torch.randn(5, 4).to(torch.bfloat16),
        "fc.bias": torch.randn(5),
    }


def make_masks() -> dict[str, torch.Tensor]:
    return {"conv.weight": torch.rand(4, 3, 3, 3) > 0.5, "fc.weight": torch.rand(5, 4) > 0.3}


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    state, masks = make_state(), make_masks()
    state["conv.weight"][~masks["conv.weight"]] = -1.0
    before = state["conv.weight"].clone()
    training = {"optimizer": {"state": {0: {"momentum": torch.ones(3)}}, "betas": (0.9, 0.999)}, "era": {"step": 3}}
    save(tmp_path / "a.pt", state=state, masks=masks, meta={"seed": 0, "data": {"mean": [0.5]}}, training=training)
    found = load(tmp_path / "a.pt", training=True)
    assert found.format == "starfire" and found.notes == ()
    assert list(found.state) == list(state)
    for key, tensor in state.items():
        dead = ~masks[key] if key in masks else torch.zeros_like(tensor, dtype=torch.bool)
        assert found.state[key].dtype == tensor.dtype
        assert torch.equal(found.state[key], torch.where(dead, torch.zeros_like(tensor), tensor))
        assert not found.state[key].signbit()[dead].any()
    assert found.masks is not None and all(torch.equal(found.masks[k], m) for k, m in masks.items())
    assert found.meta.values == {"seed": 0, "data": {"mean": [0.5]}}
    assert found.training is not None and found.training["era"] == {"step": 3}
    assert found.training["optimizer"]["betas"] == (0.9, 0.999)
    assert torch.equal(found.training["optimizer"]["state"][0]["momentum"], torch.ones(3))
    assert load(tmp_path / "a.pt").training is None
    assert torch.equal(state["conv.weight"], before), "saving changed the model"


def test_torch_alone_reads_a_plain_state_dict(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2)).to(memory_format=torch.channels_last)
    masks = {"0.weight": torch.rand(4, 3, 3, 3) > 0.5}
    save(tmp_path / "a.pt", state=model.state_dict(), masks=masks, meta={})
    plain = torch.load(tmp_path / "a.pt", weights_only=True)["model"]
    model.load_state_dict(plain)
    assert bool((plain["0.weight"][~masks["0.weight"]] == 0).all())


def test_a_view_is_saved_without_what_it_looks_into(tmp_path: Path) -> None:
    save(tmp_path / "a.pt", state={"w": torch.randn(1_000_000)[:10]}, masks=None, meta={})
    assert (tmp_path / "a.pt").stat().st_size < 10_000
    assert load(tmp_path / "a.pt").masks is None


@pytest.mark.parametrize("bad", [{"a": Path("x")}, {"a": {1, 2}}, {"a": [object()]}])
def test_meta_takes_plain_values_only(tmp_path: Path, bad: dict[str, object]) -> None:
    with pytest.raises(TypeError, match=r"meta\.a"):
        save(tmp_path / "a.pt", state={}, masks=None, meta=bad)
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=30, deadline=None)
@given(shape=st.lists(st.integers(0, 5), min_size=2, max_size=4), seed=st.integers(0, 99))
def test_any_mask_comes_back(tmp_path_factory: pytest.TempPathFactory, shape: list[int], seed: int) -> None:
    path = tmp_path_factory.mktemp("masks") / "a.pt"
    torch.manual_seed(seed)
    weight, mask = torch.randn(shape), torch.rand(shape) > 0.5
    save(path, state={"w": weight}, masks={"w": mask}, meta={})
    found = load(path)
    assert found.masks is not None and torch.equal(found.masks["w"], mask)
    assert torch.equal(found.state["w"], weight * mask)


def rewrite(path: Path, change: dict[str, object]) -> None:
    torch.save({**torch.load(path, weights_only=True), **change}, path)


def test_a_dead_weight_that_is_not_zero_is_named(tmp_path: Path) -> None:
    state, masks = make_state(), make_masks()
    masks["conv.weight"][0] = False
    save(tmp_path / "a.pt", state=state, masks=masks, meta={})
    model = torch.load(tmp_path / "a.pt", weights_only=True)["model"]
    model["conv.weight"][0, 0, 0, :2] = 1.0
    rewrite(tmp_path / "a.pt", {"model": model})
    with pytest.raises(Mismatch, match=r"conv\.weight has 2 dead weights that are not zero"):
        load(tmp_path / "a.pt")
    found = load(tmp_path / "a.pt", strict=False)
    assert bool((found.state["conv.weight"][0, 0, 0, :2] == 1).all())


def test_masks_that_do_not_match_their_digest(tmp_path: Path) -> None:
    save(tmp_path / "a.pt", state=make_state(), masks=make_masks(), meta={})
    rewrite(tmp_path / "a.pt", {"masks_digest": "0" * 64})
    with pytest.raises(Mismatch, match="digest"):
        load(tmp_path / "a.pt")
    assert any("digest" in note for note in load(tmp_path / "a.pt", strict=False).notes)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"version": 2}, "version 2"),
        ({"model": None}, "lacks"),
        ({"masks": {"conv.weight": {"shape": [4, 3, 3, 3], "bits": torch.zeros(3, dtype=torch.uint8)}}}, "conv.weight"),
        ({"masks": {"conv.weight": {"shape": [4, 3], "bits": torch.zeros(2, dtype=torch.uint8)}}}, "conv.weight"),
        ({"masks": {"conv.weight": 3}}, "conv.weight"),
        ({"masks": {"other": {"shape": [8], "bits": torch.zeros(1, dtype=torch.uint8)}}}, "other"),
    ],
)
def test_parts_that_do_not_fit(tmp_path: Path, change: dict[str, object], says: str) -> None:
    save(tmp_path / "a.pt", state=make_state(), masks=make_masks(), meta={})
    rewrite(tmp_path / "a.pt", change)
    with pytest.raises(StarfireError, match=says):
        load(tmp_path / "a.pt")


class FullDisk:
    """A file on a disk that has room for `room` bytes more."""

    def __init__(self, file: object, room: int) -> None:
        self.file, self.room = file, room

    def write(self, data: bytes) -> int:
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(data)  # type: ignore[attr-defined, no-any-return]

    def __getattr__(self, name: str) -> object:
        return getattr(self.file, name)

    def __enter__(self) -> FullDisk:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("room", [0, 100, 100_000])
def test_a_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    path = tmp_path / "a.pt"
    save(path, state={"w": torch.ones(3)}, masks=None, meta={})
    monkeypatch.setattr(atomic, "open", lambda *a: FullDisk(open(*a), room), raising=False)  # noqa: SIM115 (it closes)
    with pytest.raises(StarfireError, match=r"disk full: need 40\.\d MB, .* free") as caught:
        save(path, state={"w": torch.zeros(10_000_000)}, masks=None, meta={})
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert torch.equal(load(path).state["w"], torch.ones(3))
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StarfireError, match="there is no folder"):
        save(tmp_path / "no" / "a.pt", state={}, masks=None, meta={})
    with pytest.raises(StarfireError, match="is a folder"):
        save(tmp_path, state={}, masks=None, meta={})


def test_an_interrupted_block_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with atomic.atomic_write(tmp_path / "a") as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    atomic.write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "new"


def test_temporaries_of_the_dead_go_and_others_stay(tmp_path: Path) -> None:
    host, dead = atomic._host(), 2**22 + 7  # above the largest process number Linux gives
    stale = tmp_path / f".a.pt.{host}-{dead}-0.tmp"
    alive = tmp_path / f".a.pt.{host}-{os.getppid()}-0.tmp"
    elsewhere = tmp_path / ".a.pt.otherhost-1-0.tmp"
    other_name = tmp_path / f".b.pt.{host}-{dead}-0.tmp"
    for path in (stale, alive, elsewhere, other_name):
        path.write_text("x")
    atomic.write_text(tmp_path / "a.pt", "whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["a.pt", alive.name, elsewhere.name, other_name.name])


@pytest.mark.parametrize("place", ["no/such/file", "a file/x", ".", "/proc/x.json", "/sys/x.json"])
def test_a_place_is_refused_beforehand_in_the_words_of_the_write(tmp_path: Path, place: str) -> None:
    (tmp_path / "a file").write_text("")
    path = tmp_path / place
    with pytest.raises(StarfireError) as late, atomic_write(path):
        pass
    with pytest.raises(StarfireError) as early:
        check_writable(path)
    assert str(early.value) == str(late.value)
    check_writable(tmp_path / "new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a file"]
