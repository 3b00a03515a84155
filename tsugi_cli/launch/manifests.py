"""What the manifests of a run's checkpoints say: counts go on from the checkpoint with which it began. Pure."""

from __future__ import annotations

from tsugi_kpool.core.checkpoint import Manifest
from tsugi_kpool.core.effects import HubPlan

from .open_checkpoint import OpenCheckpoint
from .request import RunRequest


class Manifests:
    """Of one run.

    Args:
        request: The run.
        plan: The hub's.
    """

    def __init__(self, request: RunRequest, plan: HubPlan) -> None:
        self._request, self._plan = request, plan
        resumed = request.resumed
        self.begun = resumed.manifest if resumed else None
        """Of the checkpoint with which the run began."""
        self._parent = str(resumed.parent) if resumed else None
        self._base = self.begun.base if self.begun else {}

    def version(self, version: int) -> int:
        """Return a version counted over the whole run, with the rounds before it was resumed."""
        return version + (self.begun.version if self.begun else 0)

    def of(self, open_: OpenCheckpoint, eval_loss: float | None) -> Manifest:
        """Return the manifest of a checkpoint whose files are there.

        Args:
            open_: The checkpoint.
            eval_loss: Loss of its version on eval, if that has been measured.
        """
        ordered, begun, spec = open_.ordered, self.begun, self._request.spec
        return Manifest(
            version=self.version(ordered.version),
            mode=spec.kpool.mode,
            replicas=spec.topology.replicas,
            done=ordered.done,
            samples_total=self._plan.samples,
            tokens=ordered.tokens + (begun.tokens if begun else 0),
            fingerprint=self._request.fingerprint,
            config_hash=self._plan.config_hash,
            seed=spec.seed,
            files=dict(open_.files),
            clean=ordered.final,
            loss=ordered.loss,
            eval_loss=eval_loss,
            base=self._base,
            parent=self._parent,
            trained=ordered.trained + (begun.samples if begun else 0),
        )
