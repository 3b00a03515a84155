"""The launcher's part of checkpoints: when one is due, complete or given up, which are deleted. Training never waits.

Replicas on this machine write their files into a hidden folder of the run directory and report them over the
sideband. Where the first member is on another machine, its files are fetched from there. The hub says which
positions of the data order these anchors have learnt from. When all files are there, the manifest is written and the
folder gets its name. A failure is reported once, and costs only that checkpoint.
"""

from __future__ import annotations

import math
import queue
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from tsugi_cli.record.run_dir import RunPaths
from tsugi_kpool.checkpoints import Checkpoint, Store
from tsugi_kpool.core.checkpoint import ANCHORS, Manifest, due, folder_name, scratch_name
from tsugi_kpool.core.effects import CheckpointOrdered, CheckpointPart, HubPlan, Told
from tsugi_kpool.core.events import CheckpointFailed, CheckpointMade, Evaluated, Evaluating, Note
from tsugi_kpool.core.messages import Saved
from tsugi_kpool.durable import facts_of

from .arrivals import LATE, Arrivals, Wanted
from .looking import Expected
from .manifests import Manifests
from .open_checkpoint import OpenCheckpoint
from .request import RunRequest

PATIENCE_S = 60.0
"""Timeout for a replica's moments, unless the next checkpoint comes later: a checkpoint is then finished without
them."""
FIRST_S = 60.0
"""The first checkpoint comes no later than this: a run that dies young has something to go on from."""
SHARE_OF_TIME = 4
"""One that comes from another machine takes so small a part of `train.checkpoint.every_s`, where the link allows."""
Tell = Callable[[Told], None]


class Checkpoints:
    """Owns the run's folder of checkpoints. Call `turn` now and then, and `close` at the end; `tell` from any
    thread.

    Args:
        request: The run.
        paths: Its directory.
        plan: The hub's.
        tell: Where events go.
    """

    def __init__(self, request: RunRequest, paths: RunPaths, plan: HubPlan, tell: Tell) -> None:
        self._spec, self._manifests = request.spec, Manifests(request, plan)
        self._tell, self.store = tell, Store(paths.checkpoints)
        topology = request.spec.topology
        self._here = topology.replicas if topology.here is None else topology.here
        self._heard: queue.SimpleQueue[CheckpointOrdered | Saved | Evaluating | Evaluated] = queue.SimpleQueue()
        self._open: dict[str, OpenCheckpoint] = {}
        self._newest_s, self._ordered = time.monotonic(), False
        self._patience_s = max(PATIENCE_S, request.spec.train.checkpoint.every_s)
        self._told = ""
        self._awaited: int | None = None
        """The version that a replica evaluates, counted over the whole run."""
        self._losses: dict[int, float] = {}
        """What has been measured while training, by version."""
        self.newest: Checkpoint | None = None
        """The newest checkpoint that this launcher has written."""
        self.passed_over: frozenset[int] = frozenset()
        """Members that are to write no anchors for the others: what they gave was of no use."""
        self.arrivals: Arrivals | None = None
        """Brings the files of members of other machines here; set before the first `turn`. None: there are none."""

    def tell(self, told: Told) -> None:
        """Take what the hub tells: what concerns checkpoints stays here, the rest is passed on. Never raises."""
        if type(told) is CheckpointOrdered:
            self._heard.put(told)
        elif type(told) is CheckpointPart:
            self._heard.put(told.saved)
        else:
            if isinstance(told, Evaluating | Evaluated):
                self._heard.put(told)
            self._tell(told)

    def turn(self, order: Callable[[], None]) -> None:
        """Take in reports, finish complete checkpoints, and order the next one when it is due."""
        self._hear()
        for name in list(self._open):
            self._try(name, self._open[name])
        now_s = time.monotonic()
        every_s = self._spec.train.checkpoint.every_s
        if self.comes:
            return  # the one that is on its way first
        if due(now_s, self._newest_s, every_s if self._ordered else min(every_s, FIRST_S)):
            self._newest_s, self._ordered = now_s, True
            order()

    @property
    def comes(self) -> bool:
        """Whether a checkpoint is on its way here from another machine."""
        return self.arrivals is not None and self.arrivals.pending

    def close(self) -> None:
        """Finish what has its anchors and give up the rest: nobody writes any more."""
        self._hear()
        for name, each in list(self._open.items()):
            self._try(name, each, last=True)
        self.store.sweep()

    def newest_path(self) -> str | None:
        """Return the path of the newest checkpoint."""
        return str(self.newest.path) if self.newest else None

    def evaluated(self, evaluation: dict[str, dict[str, float]], whole: bool) -> None:
        """Put an evaluation into the newest checkpoint's manifest; it may be the best one now.

        Args:
            evaluation: Measures by stage.
            whole: They are of all of eval. The loss of a part is not compared with others: it may be the easier one.
        """
        base, loss = evaluation.get("base", {}), evaluation.get("trained", {}).get("loss") if whole else None
        if self.newest is None or (loss is None and not base):
            return
        known = self.newest.manifest.eval_loss if loss is None else loss  # it may have been measured while training
        manifest = msgspec.structs.replace(self.newest.manifest, eval_loss=known, base=base)
        self._rewrite(self.newest, manifest)

    def _rewrite(self, checkpoint: Checkpoint, manifest: Manifest) -> None:
        try:
            rewritten = self.store.rewrite(checkpoint, manifest)
        except OSError as error:
            self._fail(checkpoint.path.name, error.strerror or str(error))
            return
        if self.newest is not None and self.newest.path == rewritten.path:
            self.newest = rewritten

    def _hear(self) -> None:
        while not self._heard.empty():
            heard = self._heard.get_nowait()
            if isinstance(heard, Evaluating | Evaluated):
                self._note_evaluation(heard)
                continue
            name = scratch_name(heard.version, heard.final)
            if isinstance(heard, CheckpointOrdered):
                if heard.version:
                    self._open[name] = OpenCheckpoint(heard, time.monotonic())
            elif name in self._open:
                self._open[name].note(heard)

    def _note_evaluation(self, told: Evaluating | Evaluated) -> None:
        """Keep what is being evaluated, and write what was measured into the checkpoint of that version."""
        if not told.version:
            return  # before or after training
        version = self._manifests.version(told.version)
        self._awaited = version if isinstance(told, Evaluating) else None
        if not isinstance(told, Evaluated) or told.loss is None:
            return
        self._losses[version] = told.loss
        checkpoint = self.store.of(version)
        if checkpoint is not None:  # else it is still being written: its manifest will have it
            self._rewrite(checkpoint, msgspec.structs.replace(checkpoint.manifest, eval_loss=told.loss))

    def _try(self, name: str, open_: OpenCheckpoint, last: bool = False) -> None:
        """Finish or give up a checkpoint, or leave it for the next turn."""
        missing, away = open_.missing(self._here), open_.away(self._here)
        if ANCHORS in open_.errors:
            self._give_up(name, open_.errors[ANCHORS])
        elif ANCHORS not in missing and open_.errors:
            self._give_up(name, next(iter(open_.errors.values())))
        elif away and not missing.intersection(away) and not self._arrived(name, open_, away, last):
            return
        elif not missing:
            self._finish(name, open_)
        elif last or time.monotonic() - open_.since_s > self._patience_s:
            if ANCHORS in missing or missing.intersection(away):
                self._give_up(name, f"{ANCHORS} has not been written in time")
            else:
                self._finish(name, open_)

    def _arrived(self, name: str, open_: OpenCheckpoint, away: Sequence[str], last: bool) -> bool:
        """Return whether these files of another machine are here; they are fetched, or the checkpoint is given up."""
        arrivals, who = self.arrivals, f"replica {open_.first}"
        if arrivals is None:
            self._give_up(name, f"{who} has it, on another machine")
            return False
        within_s = 0.0 if open_.ordered.final else self._spec.train.checkpoint.every_s / SHARE_OF_TIME
        files = {file: open_.files[file] for file in away}
        if not open_.wanted:
            open_.wanted = True
            for older in [each for each, other in self._open.items() if other.wanted and each != name]:
                self._close_one(older)
                self.store.discard(older)
            arrivals.want(Wanted(name, open_.first, files, within_s, self._expected(open_)))
        come, reason = arrivals.verdict(name)
        if not come and (reason or last):
            if reason and arrivals.blames(name):
                self._pass_over(open_)
            self._give_up(name, f"{who}: {reason or LATE}")
        return come

    def _expected(self, open_: OpenCheckpoint) -> Expected:
        """What the run says of a checkpoint of another machine."""
        kpool, newest = self._spec.kpool, self.newest_folder()
        return Expected(kpool.n, kpool.mode, open_.ordered.digests, newest / ANCHORS if newest else None)

    def newest_folder(self) -> Path | None:
        """Return the folder of the newest checkpoint that was made, or with which the run began."""
        if self.newest is not None:
            return self.newest.path
        manifest = self._manifests.begun
        begun = self.store.of(manifest.version) if manifest is not None else None
        return begun.path if begun is not None else None

    def _pass_over(self, open_: OpenCheckpoint) -> None:
        """Another member gives the next one, at once; when nobody else is left all may again, in their time."""
        self.passed_over |= {open_.first}
        if self.passed_over.issuperset(open_.ordered.members):
            self.passed_over = frozenset()
        else:
            self._newest_s = -math.inf

    def _finish(self, name: str, open_: OpenCheckpoint) -> None:
        self._close_one(name)
        try:
            self._check(name, open_)
            made = self.store.finish(name, self._manifests.of(open_, self._losses.get(self._version(open_))))
        except OSError as error:
            self.store.discard(name)
            self._fail(folder_name(self._version(open_)), error.strerror or str(error))
            return
        self._told = ""
        # One that has waited for a replica that died may be complete after later ones.
        if self.newest is None or made.manifest.version >= self.newest.manifest.version:
            self.newest = made
        self._tell(_made(made, open_))
        # Last: until the new checkpoint is in place, the older ones are all there is to resume from.
        self._tidy(open_.ordered.version)

    def _tidy(self, version: int) -> None:
        """Delete what a new checkpoint of this version makes superfluous."""
        try:
            self.store.sweep(version, self._open)
            self.store.prune(self._spec.train.checkpoint.keep, self._awaited)
        except OSError as error:
            self._tell(Note(f"superfluous checkpoints cannot be deleted: {error.strerror or error}"))

    def _check(self, name: str, open_: OpenCheckpoint) -> None:
        """Check that each file on the disk is what its writer reported.

        Raises:
            OSError: it is not, or cannot be read.
        """
        for file, expected in open_.files.items():
            if facts_of(self.store.scratch(name) / file, expected.bytes) != expected:
                raise OSError(f"{file} is not what its replica has written")

    def _give_up(self, name: str, reason: str) -> None:
        open_ = self._close_one(name)
        self.store.discard(name)
        self._fail(folder_name(self._version(open_)), reason)

    def _close_one(self, name: str) -> OpenCheckpoint:
        if self.arrivals is not None:
            self.arrivals.forget(name)
        return self._open.pop(name)

    def _fail(self, name: str, reason: str) -> None:
        """Report a failure, each reason once in a row."""
        if reason != self._told:
            self._told = reason
            self._tell(CheckpointFailed(name, reason))

    def _version(self, open_: OpenCheckpoint) -> int:
        return self._manifests.version(open_.ordered.version)


def _made(checkpoint: Checkpoint, open_: OpenCheckpoint) -> CheckpointMade:
    manifest = checkpoint.manifest
    return CheckpointMade(
        checkpoint=checkpoint.path.name,
        version=manifest.version,
        samples=manifest.samples,
        samples_total=manifest.samples_total,
        payload_bytes=sum(each.bytes for each in manifest.files.values()),
        seconds=round(time.monotonic() - open_.since_s, 3),
    )
