"""The worker's end of checkpoints: what a replica begins from, and where it keeps what it has."""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import dataclass, field

import torch

from tsugi_cli.record.resumed import resumed_of
from tsugi_cli.record.run_dir import RunPaths
from tsugi_kpool.core.checkpoint import ANCHORS, part_name, stand_in
from tsugi_kpool.engine.checkpoint import read
from tsugi_kpool.engine.checkpoint_parts import OWN, RESIDUALS
from tsugi_kpool.engine.engine import KPoolEngine
from tsugi_kpool.engine.follower import Engine
from tsugi_kpool.engine.state import Tensors, part, restore, set_random_state


@dataclass(frozen=True)
class CheckpointState:
    """What a replica knows of an earlier run: nothing in a run from the start."""

    resumed: bool = False
    anchors: Tensors = field(default_factory=dict)
    own: Tensors = field(default_factory=dict)
    """Moments of the replica's optimizer: its own, or those of another one where its own were not kept."""
    random: Tensors = field(default_factory=dict)
    residuals: Tensors = field(default_factory=dict)
    """What coding has lost of this replica's contributions."""

    @staticmethod
    def of(paths: RunPaths, replica: int) -> CheckpointState:
        """What the run directory on this machine has for this replica.

        Raises:
            TrainingError: a file cannot be read.
        """
        resumed = resumed_of(paths)
        if resumed is None:
            return CheckpointState()
        folder = paths.checkpoints / resumed.checkpoint
        if not folder.exists():
            return CheckpointState(
                resumed=True
            )  # a newer checkpoint has taken its place: the others have the newest state
        # A machine that has joined has fetched one replica's, and may have become another one since.
        parts = [each for each in resumed.manifest.parts if (folder / part_name(each)).exists()]
        whose = stand_in(replica, parts)
        sizes = {name: facts.bytes for name, facts in resumed.manifest.files.items()}
        tensors = {} if whose is None else read(folder / part_name(whose), sizes[part_name(whose)])
        random = tensors if whose == replica else {}
        return CheckpointState(
            True, read(folder / ANCHORS, sizes[ANCHORS]), part(tensors, OWN), random, part(random, RESIDUALS)
        )

    def into(self, engine: Engine, optimizer: torch.optim.Optimizer) -> None:
        """Make it the state of a new engine and its loop's optimizer.

        Raises:
            LaunchError: it is another pool's.
        """
        if self.anchors and isinstance(engine, KPoolEngine):
            engine.begin_from(self.anchors, self.residuals)
        if self.own and not restore(optimizer, self.own):
            sys.stderr.write("the checkpoint's optimizer state is another optimizer's: beginning with none\n")

    def go_on(self) -> None:
        """Training begins: with the random numbers that would have come next."""
        set_random_state(self.random)


def note_early_end(paths: RunPaths) -> None:
    """For `tsugi join`, which cannot ask a hub that may be gone: the run has not come to the end of its data."""
    with suppress(OSError):
        paths.early.touch()
