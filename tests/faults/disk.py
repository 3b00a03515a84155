"""Disks of a run that fill, turn read-only, go away: small ones, mounted for a test."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import struct
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from safetensors.torch import load_file

from tests.support import await_no_process_of

from .fleet import Fleet
from .injector import Act

EXT4_IOC_SHUTDOWN, NO_LOG_FLUSH = 0x8004587D, struct.pack("I", 2)
"""From then on every access fails with EIO, open files included: linux/ext4.h."""


class NoDisk(Exception):
    """This user or kernel can mount none; the text says why."""


class Disk:
    """A file system of its own. `mount`, what may happen to it, `remove`.

    Args:
        place: Where it is mounted; made here.
        image: A file for an ext4, 64 MB; None: 16 MB of memory (tmpfs).
    """

    def __init__(self, place: Path, image: Path | None = None) -> None:
        self.place, self._image = place, image

    def mount(self) -> None:
        """Make it.

        Raises:
            NoDisk: rights, tools or the kernel's loop devices are missing.
        """
        self.place.mkdir()
        if self._image is None:
            _do("mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(self.place))
            return
        with self._image.open("wb") as file:
            file.truncate(64 << 20)
        _do("mkfs.ext4", "-q", str(self._image))
        _do("mount", "-o", "loop,errors=remount-ro", str(self._image), str(self.place))

    def remove(self) -> None:
        """Take it away, whatever still uses it."""
        with suppress(NoDisk):
            _do("umount", "-l", str(self.place))

    def fill(self) -> None:
        """All of it, to the last block, and the last blocks of files of lines: these have no room for a line more."""
        for path in (self.place / "filler", *self.place.rglob("*.jsonl")):
            with suppress(OSError), path.open("ab", buffering=0) as file:
                while file.write(b"\n" * 4096):
                    pass

    def turn_read_only(self) -> None:
        """As the kernel does after an error (ext4): files that are open for writing cannot be written any more."""
        device = self.place.stat().st_dev
        name = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve().name
        Path(f"/sys/fs/ext4/{name}/trigger_fs_error").write_text("a test")

    def break_down(self) -> None:
        """Nothing can be read or written any more (ext4)."""
        descriptor = os.open(self.place, os.O_RDONLY)
        fcntl.ioctl(descriptor, EXT4_IOC_SHUTDOWN, NO_LOG_FLUSH)
        os.close(descriptor)


def once(act: Callable[[], None]) -> Act:
    """As an injector takes it: a fault that does not end."""

    def begin(_: object) -> Callable[[], None]:
        act()
        return lambda: None

    return begin


def _do(*command: str) -> None:
    if shutil.which(command[0]) is None:
        raise NoDisk(f"no {command[0]}")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoDisk(done.stderr.strip())


def ended_elsewhere(fleet: Fleet) -> tuple[str, Path]:
    """A run whose disk takes no adapter has ended (8): what it said, and where the adapter is, whole and trained."""
    try:
        code, said = fleet.end()
    finally:
        fleet.stop()
    assert code == 8, said
    fleet.traps.check()
    found = re.search(r"cannot write the adapter to .* it is whole in (\S+)", said)
    assert found, said
    tensors = load_file(Path(found[1]) / "adapter_model.safetensors")
    assert any(bool(tensor.any()) for name, tensor in tensors.items() if "lora_B" in name), "it was trained"
    await_no_process_of(fleet.paths.root)
    return said, Path(found[1])
