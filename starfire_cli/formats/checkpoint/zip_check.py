"""Checks that a torch zip file is intact: every record's CRC, and no record larger than the file."""

from __future__ import annotations

import mmap
import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO, NamedTuple

import torch

from starfire_cli.damage import Damaged, DamagedFile, reading
from starfire_cli.errors import StarfireError

_LOCAL = struct.Struct("<4s5H3I2H")


class Contents(NamedTuple):
    """The checked contents of a file: its pickle, and the bytes of each storage."""

    pickle: bytes
    storages: dict[str, int]


def verify(path: Path) -> Contents:
    """Raises StarfireError naming the record that is damaged, or what else keeps this from being torch's zip.

    Reads each byte once, through a memory map; nothing is allocated by declared sizes.
    """
    with reading(path):
        try:
            with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
                records = archive.infolist()
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                    return _verify(path, records, data, file)
        except zipfile.BadZipFile as error:
            missing = "not a zip file" in str(error)  # for it begins like one
            reason = "the list of records at its end is missing" if missing else error
            raise DamagedFile(f"{path} is cut short or damaged: {reason}") from error


def _verify(path: Path, records: list[zipfile.ZipInfo], data: mmap.mmap, file: IO[bytes]) -> Contents:
    size = len(data)
    names = {record.filename.rpartition("/")[2] for record in records}
    if "constants.pkl" in names:
        raise StarfireError(
            f"{path} is a TorchScript archive, which is code, and loading never runs code; where it was made, "
            f"torch.save(model.state_dict(), ...) writes a file that loads"
        )
    if "data.pkl" not in names:
        raise StarfireError(f"{path} is a zip file, but no PyTorch checkpoint: it holds no data.pkl")
    declared = sum(record.file_size for record in records)
    if declared > size:
        raise StarfireError(f"{path} declares {declared} bytes of content in a file of {size}; refused as a zip bomb")
    if len({record.filename for record in records}) != len(records):
        raise StarfireError(f"{path} holds two records of one name; refused")
    torch_finds = torch._C.PyTorchFileReader(file)
    folder = records[0].filename.partition("/")[0] + "/"
    found: dict[str, tuple[int, int]] = {}
    view = memoryview(data)
    try:
        for record in records:
            if record.compress_type != zipfile.ZIP_STORED or record.flag_bits & 1:
                raise StarfireError(f"{path}: record {record.filename} is compressed or encrypted, as torch never does")
            start = _data_offset(path, record, data)
            if start + record.file_size > size:
                raise StarfireError(f"{path}: record {record.filename} reaches beyond the end of the file")
            if zlib.crc32(view[start : start + record.file_size]) != record.CRC:
                raise DamagedFile(f"{path} is damaged: record {record.filename} does not match its CRC")
            name = record.filename.removeprefix(folder)
            if name != record.filename:
                if torch_finds.get_record_offset(name) != start:  # type: ignore[attr-defined]  # lacks in the stubs
                    raise Damaged(f"record {record.filename} is in two places")
                found[name] = (start, record.file_size)
    finally:
        view.release()
    start, length = found["data.pkl"]
    storages = {name.removeprefix("data/"): held for name, (_, held) in found.items() if name.startswith("data/")}
    return Contents(data[start : start + length], storages)


def _data_offset(path: Path, record: zipfile.ZipInfo, data: mmap.mmap) -> int:
    """The offset of a record's data, as torch's reader finds it: after the name and extra field of the local header."""
    offset = record.header_offset
    header = _LOCAL.unpack(data[offset : offset + _LOCAL.size])
    name_length, extra_length = int(header[9]), int(header[10])
    name = data[offset + _LOCAL.size : offset + _LOCAL.size + name_length]
    if header[0] != b"PK\x03\x04" or name != record.orig_filename.encode():
        raise DamagedFile(f"{path} is damaged: the header of record {record.filename} is not where it should be")
    return offset + _LOCAL.size + name_length + extra_length
