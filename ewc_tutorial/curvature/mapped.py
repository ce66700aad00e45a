"""Tensors that stay in a file: a safetensors checkpoint, mapped into memory.

Pages are read when they are looked at and can be dropped again, so they take no memory of their
own. The format is that of https://github.com/huggingface/safetensors: the length of a header, the
header as JSON, the numbers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

#: The kinds of numbers that weights are stored in.
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


class MappedCheckpoint(Mapping[str, Tensor]):
    """The tensors of a safetensors file, or of all such files of a folder, by name.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a file is no safetensors file.
    """

    def __init__(self, path: Path) -> None:
        files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
        if not files or not files[0].is_file():
            raise FileNotFoundError(
                f"anchor {str(path)!r} must be a safetensors file, or a folder with some: save the "
                "model there first, model.save_pretrained(…)."
            )
        self.path = path
        self._stamps = {file: _stamp(file) for file in files}
        self._tensors = {name: tensor for file in files for name, tensor in _tensors(file)}

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def check(self) -> None:
        """Raise RuntimeError if a file has been written over: other numbers may be mapped now."""
        for file, stamp in self._stamps.items():
            # Replaced by another file of this name, it is still there for us.
            if file.exists() and (now := _stamp(file)) != stamp and now[0] == stamp[0]:
                raise RuntimeError(
                    f"{str(file)!r} has been written over since it became the anchor: save later "
                    "models elsewhere."
                )


def _stamp(file: Path) -> tuple[int, int, int]:
    found = os.stat(file)
    return found.st_ino, found.st_size, found.st_mtime_ns


def _tensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        with file.open("rb") as stream:
            start = 8 + int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(start - 8))
    except (ValueError, MemoryError, OverflowError):
        raise ValueError(f"anchor {str(file)!r} is no safetensors file.") from None
    storage: Any = torch.UntypedStorage.from_file(str(file), False, file.stat().st_size)
    everything = torch.empty(0, dtype=torch.uint8).set_(storage)
    for name, entry in header.items():
        if entry.get("dtype") not in DTYPES:
            continue  # no weight, or the header's own "__metadata__"
        dtype = DTYPES[entry["dtype"]]
        begin, end = (start + offset for offset in entry["data_offsets"])
        part = everything[begin:end]
        if begin % dtype.itemsize:
            part = part.clone()  # which is aligned
        yield name, part.view(dtype).view(entry["shape"])
