"""Packed sets for the tests, and a server to read them from."""

from __future__ import annotations

import functools
import http.server
import io
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from starfire_cli.cli import main
from starfire_cli.records.data import PackedData
from starfire_cli.workflows.data.pack import pack
from starfire_cli.workflows.data.request import PackRequest
from tests.helpers.data_layouts import class_folders


def images(root: Path, train: int = 12, val: int = 4) -> Path:
    """Two classes of large images, `train` and `val` of each."""
    class_folders(root / "train", ("cat", "dog"), train, size=(120, 150), suffix=".jpg")
    class_folders(root / "val", ("cat", "dog"), val, size=(150, 120), suffix=".jpg", seed=500)
    return root


def packed(source: Path | str, out: Path, **how: Any) -> PackedData:
    """Pack, seven images a shard, and say how it ended."""
    request = PackRequest(source=str(source), out=out, **({"shard_size": "7", "workers": 1} | how))
    *_, end = pack(request)
    assert isinstance(end, PackedData)
    return end


def members(file: Path) -> dict[str, bytes]:
    """Names and contents, by the standard library."""
    with tarfile.open(file) as archive:
        return {m.name: archive.extractfile(m).read() for m in archive}


def tar(file: Path, content: dict[str, bytes]) -> Path:
    """A tar file as others make them."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as archive:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """The URL of a folder, and what was asked for."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(folder)))
    server.asked = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server.asked  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def starfire(*arguments: object) -> int:
    """The command line, in this process."""
    return main([str(argument) for argument in arguments])
