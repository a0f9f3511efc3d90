"""The file of a teacher cache: safetensors, written piece by piece, with a hash of itself in the header.

Tensors, for n blocks of L positions and K entries each:

    total     [n, L] float32: log of the K entries' probability
    ids       [n, L, K] int32, or uint16 where the vocabulary allows
    logprobs  [n, L, K] float16 or float32, falling

or `logits` [n, L, V] in the teacher's dtype. Metadata: `kd_kernels`, a JSON object of what the cache was made from, and
`sha256` of the file with zeros in the place of that hash.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

FORMAT = 1
KEY, HASH = "kd_kernels", "sha256"
NO_HASH = "0" * 64
DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int32: "I32", torch.uint16: "U16"}
PIECE = 1 << 24  # bytes read at a time

Layout = dict[str, tuple[torch.dtype, tuple[int, ...]]]


def size(layout: Layout) -> int:
    """Bytes of the tensors."""
    return sum(_bytes(dtype, shape) for dtype, shape in layout.values())


def write(
    path: Path, layout: Layout, made_from: dict[str, Any], pieces: Iterator[tuple[int, dict[str, Tensor]]]
) -> None:
    """Writes a cache.

    Until the last byte is there the file has no valid hash.

    Args:
        path: of the new file.
        layout: dtype and shape of the tensors.
        made_from: the metadata.
        pieces: (first block, tensors of that block and those that follow it).
    """
    header, offsets = _header(layout, made_from)
    with open(path, "wb+") as file:
        file.write(header)
        file.truncate(len(header) + size(layout))
        for block, tensors in pieces:
            for name, tensor in tensors.items():
                dtype, shape = layout[name]
                file.seek(len(header) + offsets[name] + block * _bytes(dtype, shape[1:]))
                file.write(tensor.to("cpu", dtype).contiguous().view(torch.uint8).numpy())
        digest = _digest(file)
        file.seek(header.index(NO_HASH.encode()))
        file.write(digest.encode())
        file.flush()
        os.fsync(file.fileno())


def open_checked(path: Path) -> tuple[safe_open, dict[str, Any], str]:
    """(the open file, what it was made from, its hash).

    Raises:
        ValueError: it is not a cache, of another format, cut or changed.
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        try:
            opened = safe_open(path, framework="pt")
        except SafetensorError as error:
            raise ValueError(f"{path} is no teacher cache, or not a whole one: {error}") from None
        metadata = opened.metadata() or {}
        if KEY not in metadata or HASH not in metadata:
            raise ValueError(f"{path} is no teacher cache; kd-kernels cache-teacher makes one")
        found = _digest(file)
    if found != metadata[HASH]:
        raise ValueError(
            f"{path} is damaged: its SHA-256 was {metadata[HASH][:12]}, is {found[:12]}; make it again with "
            "kd-kernels cache-teacher"
        )
    made_from = json.loads(metadata[KEY])
    if made_from["format"] != FORMAT:
        raise ValueError(f"{path} has format {made_from['format']}; this version reads format {FORMAT}")
    return opened, made_from, found


def _header(layout: Layout, made_from: dict[str, Any]) -> tuple[bytes, dict[str, int]]:
    """The file up to the tensors, and where each begins after it."""
    entries: dict[str, Any] = {"__metadata__": {HASH: NO_HASH, KEY: json.dumps({"format": FORMAT, **made_from})}}
    offsets, end = {}, 0
    for name, (dtype, shape) in layout.items():
        offsets[name], end = end, end + _bytes(dtype, shape)
        entries[name] = {"dtype": DTYPES[dtype], "shape": shape, "data_offsets": [offsets[name], end]}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, offsets


def _digest(file: BinaryIO) -> str:
    """SHA-256 of the file, with zeros for the hash in its header."""
    file.seek(0)
    length = file.read(8)
    header = file.read(int.from_bytes(length, "little"))
    prefix = f'"{HASH}": "'.encode()
    at = header.index(prefix) + len(prefix)
    digest = hashlib.sha256(length + header[:at] + NO_HASH.encode() + header[at + len(NO_HASH) :])
    while piece := file.read(PIECE):
        digest.update(piece)
    return digest.hexdigest()


def _bytes(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    return dtype.itemsize * torch.Size(shape).numel()
