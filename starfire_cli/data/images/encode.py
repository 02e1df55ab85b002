"""Shrinks and re-encodes images before they are packed into shards."""

from __future__ import annotations

from io import BytesIO

from starfire_cli.data.images import decode, resample

_ENDINGS = {b"\xff\xd8\xff": "jpg", b"\x89PNG": "png", b"GIF8": "gif", b"RIFF": "webp", b"BM": "bmp", b"II*\0": "tif"}


def shrink_image(data: bytes, name: str, short_side: int, quality: int) -> tuple[str, bytes]:
    """The ending and the bytes of an image file whose shorter side is `short_side` pixels at most (0: any).

    Larger ones become JPEGs, upright and without alpha channel; others keep their bytes. Raises Corrupt.
    """
    from PIL import Image

    with decode.suppress_warnings():
        if not short_side or min(decode.size_of(BytesIO(data))) <= short_side:
            return _ending(data, name), data
        image = resample.scale_short(decode.decode(data), short_side)
    buffer = BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(buffer, "JPEG", quality=quality)
    return "jpg", buffer.getvalue()


def _ending(data: bytes, name: str) -> str:
    found = (ending for start, ending in _ENDINGS.items() if data.startswith(start))
    return next(found, name.rpartition(".")[2].lower())
