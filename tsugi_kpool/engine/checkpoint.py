"""The files of a replica's part of a checkpoint: written by a thread, so that training does not wait, and read.

Anchors are equal on all replicas, so one member writes them, as they stood when the round of that version was
committed. Moments of local mode are each replica's own: copied at the next boundary between two steps, because
only the training thread may look at its optimizer. A thread writes the copies; the launcher makes them a checkpoint.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save

from tsugi_kpool.core.checkpoint import MOST, FileFacts
from tsugi_kpool.durable import write_file
from tsugi_kpool.errors import TrainingError
from tsugi_kpool.foreign import read_plain

from .state import Tensors

Report = Callable[[str, str, FileFacts | str], None]
"""Called with (checkpoint, file, facts of the file or the reason why it was not written)."""


class Writer:
    """Writes files of checkpoints in a thread of its own, one after the other. `write`, `stop`.

    Args:
        root: The run's folder of checkpoints.
        report: Called in the thread after each file; must not raise.
    """

    def __init__(self, root: Path, report: Report) -> None:
        self._root, self._report = root, report
        self._queue: queue.SimpleQueue[tuple[str, str, Tensors] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="tsugi-checkpoint", daemon=True)
        self._thread.start()

    def write(self, checkpoint: str, file: str, tensors: Tensors) -> None:
        """Queue these tensors to be written after the earlier ones; nobody may change them any more."""
        self._queue.put((checkpoint, file, tensors))

    def stop(self, timeout_s: float) -> None:
        """Write what is queued, as far as the time allows, and end the thread."""
        self._queue.put(None)
        self._thread.join(timeout=timeout_s)

    def _run(self) -> None:
        while (asked := self._queue.get()) is not None:
            checkpoint, file, tensors = asked
            self._report(checkpoint, file, self._written(checkpoint, file, tensors))

    def _written(self, checkpoint: str, file: str, tensors: Tensors) -> FileFacts | str:
        """Write one file. Returns its facts, or why it failed: training goes on whatever the disk says."""
        try:
            folder = self._root / f".{checkpoint}.tmp"
            self._root.mkdir(exist_ok=True)  # not its parents: a run directory that has gone is not made again
            folder.mkdir(exist_ok=True)
            beside = folder / f".{file}"
            facts = write_file(beside, save(tensors))
            beside.rename(folder / file)  # whoever sees it sees all of it
            return facts
        except OSError as error:
            return error.strerror or str(error)
        except Exception as error:  # noqa: BLE001  (a thread's outermost frame; told to the launcher)
            return repr(error)


def read(path: Path, most_bytes: int = MOST) -> Tensors:
    """Read the tensors of a verified file; `most_bytes` is its size in the manifest.

    Raises:
        TrainingError: it cannot be read, or is none of ours.
    """
    try:
        tensors: Tensors = load(read_plain(path, most_bytes))
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"cannot read {path}: {error}") from error
    return tensors
