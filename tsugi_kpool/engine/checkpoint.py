"""What one replica puts into a checkpoint, how it gets to the disk without training waiting for it, and back.

Anchors are equal on all replicas, so one member writes them, as they stood when the round of that version was
committed. Moments of local mode are each replica's own: copied at the next boundary between two micro-steps, because
only the training thread may look at its optimizer. A thread writes the copies; the launcher makes them a checkpoint.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from tsugi_kpool.core.checkpoint import MOST, FileFacts
from tsugi_kpool.durable import write_file
from tsugi_kpool.errors import TrainingError
from tsugi_kpool.foreign import read_plain

from .shards import whole

ANCHOR = "anchor"
"""[N, P] fp32."""
RNG = "rng"
"""States of torch's random sources: dropout goes on with the numbers that would have come."""
Tensors = dict[str, Tensor]
Report = Callable[[str, str, FileFacts | str], None]
"""Called with (checkpoint, file, what was written, or why it was not)."""


class Writer:
    """Writes files of checkpoints in its own thread, one after the other. `write`, `stop`.

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
        """Write these tensors, which nobody changes any more, when the earlier ones have been."""
        self._queue.put((checkpoint, file, tensors))

    def stop(self, timeout_s: float) -> None:
        """Write what has been asked for, as far as the time allows, and end the thread."""
        self._queue.put(None)
        self._thread.join(timeout=timeout_s)

    def _run(self) -> None:
        while (asked := self._queue.get()) is not None:
            checkpoint, file, tensors = asked
            self._report(checkpoint, file, self._written(checkpoint, file, tensors))

    def _written(self, checkpoint: str, file: str, tensors: Tensors) -> FileFacts | str:
        """Training goes on whatever the disk says."""
        try:
            folder = self._root / f".{checkpoint}.tmp"
            self._root.mkdir(exist_ok=True)  # not its parents: a run directory that has gone is not made again
            folder.mkdir(exist_ok=True)
            return write_file(folder / file, save(tensors))
        except OSError as error:
            return error.strerror or str(error)
        except Exception as error:  # noqa: BLE001  (a thread's outermost frame; told to the launcher)
            return repr(error)


def moments(optimizer: torch.optim.Optimizer | None) -> Tensors:
    """A copy of an optimizer's state on the host. With shards a collective of all workers of the replica."""
    state = {} if optimizer is None else optimizer.state
    return {
        f"{number}.{name}": _on_host(value)
        for number, parameter in enumerate(_parameters(optimizer))
        for name, value in state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def restore(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> bool:
    """Put a copy of the state of such an optimizer into this one; false when it is another optimizer's."""
    parameters = _parameters(optimizer)
    states: list[dict[str, Tensor]] = [{} for _ in parameters]
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        if not number.isdigit() or int(number) >= len(parameters):
            return False
        states[int(number)][name] = value
    for parameter, state in zip(parameters, states, strict=True):
        # A parameter of `AdapterParameters` is empty between two steps, whatever its moments are.
        if any(value.dim() and parameter.numel() and value.shape != parameter.shape for value in state.values()):
            return False
    optimizer.state.clear()
    for parameter, state in zip(parameters, states, strict=True):
        if state:
            optimizer.state[parameter] = {name: _like(parameter, value) for name, value in state.items()}
    return True


def random_state() -> Tensors:
    """A copy of torch's random sources."""
    found = {f"{RNG}.cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        found[f"{RNG}.cuda"] = torch.cuda.get_rng_state()
    return found


def set_random_state(tensors: Mapping[str, Tensor]) -> None:
    """Go on with the random numbers that would have come next."""
    if f"{RNG}.cpu" in tensors:
        torch.set_rng_state(tensors[f"{RNG}.cpu"])
    if f"{RNG}.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors[f"{RNG}.cuda"])


def part(tensors: Mapping[str, Tensor], prefix: str) -> Tensors:
    """The tensors below a prefix, without it."""
    return {
        name.removeprefix(f"{prefix}."): value for name, value in tensors.items() if name.startswith(f"{prefix}.")
    }


def prefixed(tensors: Mapping[str, Tensor], prefix: str) -> Tensors:
    """The other way round."""
    return {f"{prefix}.{name}": value for name, value in tensors.items()}


def read(path: Path, most_bytes: int = MOST) -> Tensors:
    """The tensors of a file that has been verified; `most_bytes` is what its manifest says.

    Raises:
        TrainingError: it cannot be read, or is none of ours.
    """
    try:
        tensors: Tensors = load(read_plain(path, most_bytes))
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"cannot read {path}: {error}") from error
    return tensors


def _parameters(optimizer: torch.optim.Optimizer | None) -> list[Any]:
    return [] if optimizer is None else [each for group in optimizer.param_groups for each in group["params"]]


def _on_host(value: Tensor) -> Tensor:
    return whole(value.detach()).to("cpu", copy=True).contiguous()


def _like(parameter: Tensor, value: Tensor) -> Tensor:
    """As the optimizer would have made it: counters stay on the host, moments lie where the parameter does."""
    if not value.dim():
        return value.clone()
    if isinstance(parameter, DTensor):
        here = value.to(parameter.device)
        return distribute_tensor(here, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return value.to(parameter.device, copy=True)
