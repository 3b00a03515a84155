"""The adapter of a replica that has ended, offered to a hub whose machine has none."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from tsugi_cli.data import cache
from tsugi_cli.data.shipped import File
from tsugi_kpool.core.messages import AdapterOffer, AdapterSettled, DataPart, DataRequest
from tsugi_kpool.core.parcels import PART_BYTES
from tsugi_kpool.errors import LaunchError
from tsugi_kpool.sideband.observer import Observer

WEIGHTS = "adapter_model.safetensors"
MOST_FILES, MOST_BYTES = 64, 1 << 36
OFFER_S = 1.0
"""Period of offering it again while nothing is asked for."""
SILENT_S = 20.0
"""A hub that says nothing for so long takes nothing; the adapter stays here."""
WAIT_S = 0.1
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PLAIN = (".safetensors", ".json", ".md", ".txt", ".jinja", ".model")
"""How names of an adapter's files end. None of them is run by whoever loads it."""


def listing_of(folder: Path) -> bytes:
    """Describe the adapter in a folder.

    Raises:
        OSError: a file cannot be read.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name.endswith(_PLAIN))
    return msgspec.json.encode({path.name: File(path.stat().st_size, cache.file_digest(path)) for path in files})


def read_listing(data: bytes) -> Mapping[str, File]:
    """Read the listing of an adapter that was offered.

    Raises:
        LaunchError: it is none, or names what is no file of an adapter.
    """
    try:
        files = msgspec.json.decode(data, type=dict[str, File])
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise LaunchError("an adapter was offered without a listing") from error
    if not 0 < len(files) <= MOST_FILES or WEIGHTS not in files:
        raise LaunchError(f"an adapter was offered that is none: {len(files)} files")
    for name, file in files.items():
        fits = _NAME.fullmatch(name) and name.endswith(_PLAIN) and _SHA256.fullmatch(file.sha256)
        if not fits or not 0 <= file.size <= MOST_BYTES:
            raise LaunchError(f"an adapter was offered with a file {name[:60]!r} of {file.size} bytes")
    return files


def offer(hub: Observer, ticket: str, folder: Path, stopped: Callable[[], bool]) -> bool:
    """Offer an adapter, and give what is asked for; returns whether the hub's machine has it, or needs none.

    Args:
        hub: The connection to it.
        ticket: Of the place that the replica had.
        folder: The adapter's.
        stopped: Whether the user does not want to wait.

    Raises:
        OSError: it cannot be read.
    """
    question = AdapterOffer(ticket, listing_of(folder))
    heard_s, offered_s = time.monotonic(), -OFFER_S
    while not stopped() and (now_s := time.monotonic()) - heard_s < SILENT_S:
        if now_s - offered_s >= OFFER_S:
            offered_s = now_s
            hub.send(question)
        message = hub.receive(WAIT_S)
        if isinstance(message, AdapterSettled):
            return True
        if isinstance(message, DataRequest) and message.ticket == ticket:
            heard_s = now_s
            hub.send(DataPart(message.file, message.start, _part(folder, message)))
    return False


def _part(folder: Path, asked: DataRequest) -> bytes:
    """Return the bytes that were asked for: of an adapter's file, and of nothing else."""
    if not _NAME.fullmatch(asked.file) or not asked.file.endswith(_PLAIN):
        return b""
    with (folder / asked.file).open("rb", buffering=0) as file:
        file.seek(asked.start)
        return file.read(PART_BYTES)
