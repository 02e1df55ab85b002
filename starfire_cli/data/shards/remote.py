"""Reads URLs by the openers of the webdataset library; no shell ever sees a URL.

URLs come from checkpoints, too, so nothing is accepted that could make a program run: webdataset's `pipe:` is refused.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib import import_module
from typing import IO, Any

from starfire_cli.damage import Damaged
from starfire_cli.errors import BadOption, StarfireError

SCHEMES = ("http", "https", "s3", "gs")
_PLAIN = re.compile(r"(https?|s3|gs)://[A-Za-z0-9][A-Za-z0-9._~:/?#@&+,=%-]*")


def is_url(text: str) -> bool:
    """Whether a text is a URL rather than a path."""
    return "://" in text or text.startswith("pipe:")


def check_url(url: str) -> str:
    """`url`, if its scheme may be opened. Raises BadOption."""
    if url.startswith("pipe:"):
        raise BadOption(
            f"--data {url}: commands are not run, since a checkpoint remembers its data and could make others run "
            f"them; give a URL ({', '.join(f'{s}://' for s in SCHEMES)})"
        )
    if not _PLAIN.fullmatch(url):
        raise BadOption(f"--data {url}: not a URL that can be opened; {', '.join(f'{s}://' for s in SCHEMES)} work")
    return url


@contextlib.contextmanager
def open_url(url: str) -> Iterator[IO[bytes]]:
    """A stream of the bytes behind a URL. Raises BadOption, or StarfireError with the reason."""
    check_url(url)
    try:
        library = import_module("webdataset.gopen")  # `import ... as` gives the function of that name
    except ImportError:
        raise StarfireError(
            f"--data {url}: remote shards need the webdataset package; pip install webdataset"
        ) from None
    try:
        stream: Any
        if url.startswith("s3://"):  # webdataset leaves S3 to `pipe:aws s3 cp URL -`; the same, without a shell
            stream = library.Pipe(["aws", "s3", "cp", url, "-"], mode="rb", stderr=subprocess.DEVNULL)
        else:
            stream = library.gopen(url, "rb")
        try:
            yield stream
        except Damaged:
            # Who stops in the middle breaks the pipe, which is not the cause; at the end the transfer's own status is.
            with contextlib.suppress(OSError) if stream.read(1) else contextlib.nullcontext():
                stream.close()
            raise
        except BaseException:
            with contextlib.suppress(OSError):
                stream.close()
            raise
        stream.close()
    except FileNotFoundError as error:
        raise StarfireError(f"{url}: {error.filename} is not installed, which opens it") from None
    except OSError as error:
        raise StarfireError(f"{url} cannot be read: {_reason(url, str(error))}") from None


def read_url(url: str, most: int) -> bytes:
    """All bytes behind a URL, `most` at most. Raises as `opened`."""
    with open_url(url) as stream:
        parts, length = [], 0
        while part := stream.read(2**20):
            parts.append(part)
            length += len(part)
            if length > most:
                raise StarfireError(f"{url} is longer than the {most:,} bytes that may be there; it is something else")
    return b"".join(parts)


def _reason(url: str, text: str) -> str:
    if url.startswith("http"):
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=10).close()
        except urllib.error.HTTPError as error:
            return f"HTTP {error.code} {error.reason}"
        except OSError as error:
            return str(getattr(error, "reason", error))
    found = re.search(r"exit (\d+)", text)
    return f"its transfer ended with exit code {found[1]}" if found else text
