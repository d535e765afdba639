"""The headers of safetensors files: names, types and shapes of the tensors, read without loading any of them.

Format: 8 bytes little-endian length, a JSON object of that length, then the tensors' bytes without holes
(huggingface/safetensors, README "Format"). Everything in a header is checked against the file's size before it is used.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from advisor.errors import FileProblem
from advisor.library import read_text
from advisor.profiler.configuration import parse_json_object

LARGEST_HEADER = 100_000_000
"""bytes; the reference implementation's own limit"""
LARGEST_INDEX = 64 * 2**20
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "U16": 16,
    "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64, "C64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
"""bits of an element by dtype name; others are taken at the size their offsets give"""
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")


class Tensor(NamedTuple):
    """One tensor as its header describes it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int
    """bytes"""


def read_tensors(folder: Path) -> Iterator[Tensor] | None:
    """Every tensor of a folder's checkpoint, None when it has no safetensors. Raises FileProblem naming file and fault."""
    files = checkpoint_files(folder)
    return None if not files else (tensor for file in files for tensor in read_header(folder / file))


def checkpoint_files(folder: Path) -> list[str]:
    """The safetensors files that make up the checkpoint, in order. Raises FileProblem for a shard that is missing."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return _indexed(folder, index)
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    if "model.safetensors" in names:
        return ["model.safetensors"]
    shards = [match for match in map(_SHARD.fullmatch, names) if match]
    if shards:
        stem, count = shards[0]["stem"], int(shards[0]["count"])
        wanted = [f"{stem}-{number:05d}-of-{count:05d}.safetensors" for number in range(1, min(count, 10_000) + 1)]
        _all_there(folder, wanted, where=str(folder))
        return wanted
    return [name for name in names if not name.startswith(("adapter", "consolidated"))]


def _indexed(folder: Path, index: Path) -> list[str]:
    record = parse_json_object(read_text(index, largest=LARGEST_INDEX, what="index"), where=str(index))
    placed = record.get("weight_map")
    if not isinstance(placed, Mapping) or not placed:
        raise FileProblem("the index has no weight_map", where=str(index), hint="download the checkpoint again")
    files = sorted({name if isinstance(name, str) else "" for name in placed.values()})
    for name in files:
        if not name or "/" in name or "\\" in name or name.startswith(".") or "\0" in name:
            raise FileProblem(
                f"the index names {name[:60]!r} as a shard", where=str(index), hint="shards lie beside their index"
            )
    _all_there(folder, files, where=str(index))
    return files


def _all_there(folder: Path, files: list[str], *, where: str) -> None:
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise FileProblem(
            f"{len(missing)} of {len(files)} shards are missing: {shown}", where=where, hint="download the missing files"
        )


def read_header(path: Path) -> list[Tensor]:
    """The tensors of one file. Raises FileProblem for a file that is cut off or whose header does not describe it."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            start = file.read(8)
            if len(start) < 8:
                raise _problem(path, f"a safetensors file begins with 8 bytes of length; this one has {size} bytes")
            (length,) = struct.unpack("<Q", start)
            if not 2 <= length <= LARGEST_HEADER:
                raise _problem(path, f"not a safetensors file: its header would have {length:,} bytes")
            if 8 + length > size:
                raise _problem(path, f"cut off inside its header: {size:,} bytes, the header ends at {8 + length:,}")
            text = file.read(length)
    except OSError as error:
        raise FileProblem(
            f"cannot be read: {error.strerror}", where=str(path), hint="check the file and its permissions"
        ) from None
    return parse_header(text, size - 8 - length, where=str(path))


def parse_header(text: bytes, data_size: int | None, *, where: str) -> list[Tensor]:
    """The tensors of a header, checked against the bytes that follow it (None: not known). Raises FileProblem."""
    path = Path(where)
    try:
        entries = json.loads(text.decode("utf-8"), object_pairs_hook=_no_duplicates)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise _problem(path, f"its header is not valid JSON: {str(error)[:80]}") from None
    if not isinstance(entries, dict):
        raise _problem(path, "its header is not a JSON object")
    found = [(_offsets(entry, path, name), name, entry) for name, entry in entries.items() if name != "__metadata__"]
    found.sort(key=lambda item: item[0])
    end = 0
    tensors = []
    for (first, last), name, entry in found:
        if first != end:
            raise _problem(path, f"tensor {name[:80]!r} begins at {first:,}, not at {end:,} where the one before it ends")
        end = last
        tensors.append(_tensor(name, entry, last - first, path))
    if data_size is not None and end != data_size:
        fault = "cut off" if end > data_size else "longer than its header says"
        raise _problem(path, f"{fault}: {data_size:,} bytes of tensors, the header describes {end:,}")
    return tensors


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _offsets(entry: object, path: Path, name: str) -> tuple[int, int]:
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(value) is int for value in offsets):
        raise _problem(path, f"tensor {name[:80]!r} has no data_offsets")
    first, last = offsets
    if not 0 <= first <= last < 2**63:
        raise _problem(path, f"tensor {name[:80]!r} has the impossible offsets {str(offsets)[:60]}")
    return first, last


def _tensor(name: str, entry: dict[str, Any], size: int, path: Path) -> Tensor:
    dtype, shape = entry.get("dtype"), entry.get("shape")
    if (
        not isinstance(dtype, str)
        or not isinstance(shape, list)
        or not all(type(value) is int and value >= 0 for value in shape)
    ):
        raise _problem(path, f"tensor {name[:80]!r} has no usable dtype and shape")
    bits = BITS.get(dtype)
    if bits is not None and math.prod(shape) * bits != size * 8:
        raise _problem(path, f"tensor {name[:80]!r} of {dtype}{shape} has {size:,} bytes")
    return Tensor(name, dtype, tuple(shape), size)


def _problem(path: Path, what: str) -> FileProblem:
    return FileProblem(what, where=str(path), hint="download the file again")
