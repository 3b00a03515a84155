"""What is kept when the hub has been silent for too long: a joiner's anchors as an adapter, else the checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tsugi_cli.record.run_dir import RunPaths
from tsugi_kpool.checkpoints import Store
from tsugi_kpool.engine.engine import KPoolEngine
from tsugi_kpool.engine.follower import Engine
from tsugi_kpool.errors import SidebandError


@contextmanager
def kept_when_left_alone(engine: Engine, paths: RunPaths, write: Callable[[], None]) -> Iterator[None]:
    """If the hub never returns in the block: keep what the fleet had agreed on, and say in the error what is kept.

    Args:
        engine: The replica's; the block ends its threads.
        paths: Of the run directory on this machine.
        write: Writes the model's adapter into it.

    Raises:
        SidebandError: the block's, with what is kept.
        ExportError: the adapter could not be written.
    """
    try:
        yield
    except SidebandError as error:
        raise SidebandError(f"{error}; {_keep(engine, paths, write)}") from error


def _keep(engine: Engine, paths: RunPaths, write: Callable[[], None]) -> str:
    if not paths.slot.exists():  # the hub's own machine: its journal and checkpoints are there
        newest = Store(paths.checkpoints).newest().newest
        if newest is None:
            return "no checkpoint was written: nothing is kept"
        return f"kept is {newest.path.name}; to go on from it: tsugi finetune resume={paths.root}"
    if not isinstance(engine, KPoolEngine):
        return "worker 0 of this replica says what is kept"
    if any(hasattr(each, "full_tensor") for each in engine.trainable()):  # nobody else is left to put it together
        return "a replica whose workers hold shards (topology.inside=fsdp2) leaves no adapter then"
    if (
        not engine.version and paths.adapter.exists()
    ):  # of the incarnation before: it has waited in vain to join again
        return f"the adapter of the last round that was committed here: {paths.adapter}"
    if not engine.version:
        return "no round had been committed here: there is no adapter"
    engine.buffer.settle()  # own steps since the last round are in nobody's books
    write()
    return f"the adapter of the last round that was committed here (version {engine.version}): {paths.adapter}"
