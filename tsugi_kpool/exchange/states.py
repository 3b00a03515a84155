"""The fleet's state on its way from a donor to newcomers: a file on the hub's disk, so that memory stays bounded."""

from __future__ import annotations

import errno
import shutil
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from .frames import CHUNK, BadFrame, Piece

STATE_COPIES, STATE_MORE = 16, 1 << 26
"""A state has at most so many numbers for each of the pool's (with AdamW three), and so many bytes beside them."""
DISK_SHARE = 4
"""And it takes at most one part in so many of what is free on the disk: before the first commit nobody here knows how
large a pool is."""


class States:
    """The newest generation's state. `offer` takes its pieces in, `pieces` gives them out when all are there.

    Args:
        folder: Where the file goes.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "state.tmp"
        self._file: BinaryIO | None = None
        self.generation = 0
        """Of the state that is there, or is coming."""
        self.total = self._size = 0

    @property
    def whole(self) -> bool:
        """Whether all of it is there."""
        return self._file is not None and self._size == self.total

    def offer(self, piece: Piece, body: bytes | bytearray, most: int) -> bool:
        """Take in a piece; returns whether the state is whole now. A donor that begins again does so from 0.

        Args:
            piece: What it says of itself.
            body: Its bytes.
            most: Bytes that a state can have.

        Raises:
            BadFrame: it does not follow the one before.
            OSError: the disk has no room, or too little.
        """
        if not 0 < len(body) <= piece.total - piece.offset or piece.total > most:
            raise BadFrame(f"a piece of {len(body)} bytes at {piece.offset} of {piece.total}")
        if piece.offset == 0 and piece.total > (free := shutil.disk_usage(self._path.parent).free) // DISK_SHARE:
            raise OSError(errno.ENOSPC, f"a state of {piece.total} bytes, and {free} are free")
        if piece.offset == 0 and piece.generation >= self.generation:
            self.close()
            self._file = self._path.open("w+b")
            self.generation, self.total, self._size = piece.generation, piece.total, 0
        if self._file is None or (piece.generation, piece.offset, piece.total) != (
            self.generation, self._size, self.total,
        ):  # fmt: skip
            raise BadFrame(f"a piece at {piece.offset} of generation {piece.generation}, not the next one")
        self._file.seek(piece.offset)
        self._file.write(body)
        self._size += len(body)
        return self.whole

    def read(self, offset: int) -> bytes:
        """Return the piece that begins here."""
        if self._file is None:
            return b""
        self._file.seek(offset)
        return self._file.read(CHUNK)

    def close(self) -> None:
        """Forget the state."""
        if self._file is not None:
            self._file.close()
        self._file = None
        with suppress(OSError):
            self._path.unlink()
