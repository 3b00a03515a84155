"""Today's reader and renderer behind the interfaces of the data room."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsugi_cli.config.spec import Data
from tsugi_cli.data import cache
from tsugi_cli.data.rows import Row
from tsugi_cli.data.split import Part

from .data import load_built, read_jsonl


@dataclass
class ListShard:
    part: Part
    rows: list[Row]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.rows)


class OldSource:
    def __init__(self, data: Data) -> None:
        self.data, self.detected = data, ""
        self._shards: list[ListShard] | None = None

    def digest(self) -> str:
        if self.data.builder is None:
            return cache.file_digest(Path(self.data.path or "").expanduser())
        built = [[each.messages for each in shard.rows] for shard in self.shards(1)]
        return hashlib.sha256(json.dumps(built).encode()).hexdigest()

    def shards(self, processes: int) -> list[ListShard]:
        if self._shards is not None:
            return self._shards
        if self.data.builder is None:
            named = {Part.OPEN: (str(self.data.path), read_jsonl(Path(self.data.path or "").expanduser()))}
        else:
            built = load_built(self.data)
            named = {
                part: (f"data.builder={self.data.builder}: {part.name.lower()}", getattr(built, part.name.lower()))
                for part in (Part.TRAIN, Part.EVAL, Part.TEST)
            }
        self._shards = [
            ListShard(
                part, [Row(name, at, tuple(each), (None,) * len(each)) for at, each in enumerate(found, start=1)]
            )
            for part, (name, found) in named.items()
        ]
        return self._shards
