"""`PlesioHandle`: a model's part in the pool, and all that a training loop can ask of it."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any

from peft import PeftModel
from torch import Tensor, nn, no_grad
from torch.optim import Optimizer

from tsugi_kpool.engine.inside import ALONE, Inside
from tsugi_kpool.engine.local_group import whole
from tsugi_kpool.errors import ConfigError
from tsugi_kpool.world import World

from .clipping import ClippingAlone
from .figures import PoolFigures, local_figures, with_lag
from .fitting import ATTRIBUTE, check_seconds
from .optimizer import optimizer_for
from .reductions import means_of, parts_of, reduce
from .session import Session
from .waiting import WAIT_S, wait_for_version

EXIT_TIMEOUT_S = 600.0
"""A process that ends without closing waits this long for the last round, then leaves."""


class PlesioHandle:
    """A model's part in the pool, until it is closed. A context manager: leaving the block closes.

    Made by `plesio_init`. `replica` and `replicas` say which part of the data is this replica's, `worker` and
    `workers` which part of that is this process's.
    """

    def __init__(
        self,
        model: nn.Module,
        place: World,
        session: Session | None,
        inside: Inside = ALONE,
        clip: ClippingAlone | None = None,
    ) -> None:
        self.replica, self.replicas = place.replica, place.replicas
        self.worker, self.workers, self._inside = inside.worker, inside.workers, inside
        self._model, self._session, self._clip = model, session, clip
        self._closed = self._stopping = False
        self._reductions, self._process = 0, os.getpid()
        self._marked = [model]
        if session is not None and isinstance(model, PeftModel):
            self._marked.append(model.get_base_model())
        for each in self._marked:
            each.__dict__[ATTRIBUTE] = self
        atexit.register(self._at_exit)

    def __repr__(self) -> str:
        state = "closed" if self._closed else "stopping" if self.stopping else "training"
        own = self._local_figures()
        return (
            f"<PlesioHandle replica {self.replica} of {self.replicas}, {state}: {own.steps} steps, {own.tokens} "
            f"tokens, {own.committed} of them committed, version {own.version}>"
        )

    @property
    def closed(self) -> bool:
        """Whether this process has left the pool."""
        return self._closed

    @property
    def version(self) -> int:
        """Rounds that this replica has committed; 0 without peers."""
        return self._session.engine.version if self._session else 0

    def optimizer(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> Optimizer:
        """AdamW for this pool, at the rate that is right for synchronous steps, whatever the number of replicas.

        It is a FleetAdamW, which the pool tells how many replicas are left, and torch.optim.AdamW where nothing is
        averaged: without peers, in gradient mode, and with select_at="train".

        Args:
            params: Parameters or groups of them, as for any optimizer of torch.
            lr: Learning rate.
            betas: Memories of the first and of the second moment.
            eps: Added to the root of the second moment.
            weight_decay: Decoupled.

        Raises:
            ConfigError: a value is out of its range.
        """
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        settings = self._session.engine.settings if self._session is not None else None
        return optimizer_for(params, self.replicas, settings, options)

    def figures(self) -> PoolFigures:
        """How this replica's training goes. Asks the hub, for a second at most: not something for every step."""
        if self._session is None or self._closed:
            return self._local_figures()
        return with_lag(self._local_figures(), self._session, self.replica)

    def wait(self, version: int, timeout_s: float = WAIT_S) -> None:
        """Wait until so many rounds have been committed; the next forward pass begins on their result.

        Without peers every step is a round of its own, and there is nothing to wait for.

        Args:
            version: As in `version`.
            timeout_s: Give up then.

        Raises:
            ConfigError: nobody trains, and a round needs more steps of this replica than it has made.
            TsugiError: the run has failed, or the round has not come in time.
        """
        if self._session is not None and not self._closed:
            check_seconds("timeout_s", timeout_s)
            wait_for_version(self._session, version, timeout_s)

    def reduce(
        self, metrics: Mapping[str, float], weight: float = 1.0, timeout_s: float = WAIT_S
    ) -> dict[str, float]:
        """The mean of every metric over the replicas: the same result on all of them.

        All must call this equally often, and all workers of a replica together; who has closed is not waited for.

        Args:
            metrics: At most 30 names; a metric may be missing on some replicas.
            weight: Of this replica, such as the size of its evaluation set; at least 0.
            timeout_s: Give up then.

        Raises:
            ConfigError: these are no metrics.
            TsugiError: the run has failed, or not all have called this in time.
        """
        parts = parts_of(metrics, weight)
        if self._session is None or self._closed:
            return means_of(parts)
        self._reductions += 1
        return means_of(reduce(self._session, self._inside, self._reductions, parts, timeout_s))

    def stop(self, reason: str = "a loop has asked for it") -> None:
        """Ask all replicas to stop: `stopping` becomes true on each of them soon, and every loop ends as it likes.

        Of a replica's workers, worker 0 is the one that is heard.
        """
        self._stopping = True
        if self._session is not None and not self._closed:
            self._session.stop_all(reason)

    @property
    def stopping(self) -> bool:
        """Whether a replica has called `stop`; a loop looks at it between two steps, and closes."""
        return self._stopping or (self._session is not None and self._session.engine.draining)

    def weight(self, tokens: int) -> float:
        """What to multiply a worker's mean loss with, so that every token of its replica counts the same.

        DDP and FSDP average gradients over workers as equals, however many tokens each had. All workers must call
        this for every step; a replica of one worker gets 1.

        Args:
            tokens: This worker's supervised tokens; 0 makes its loss weightless.
        """
        return whole(self._inside, tokens, 0, 0.0).weight

    def count(self, tokens: int | Tensor) -> None:
        """Say how many supervised tokens (or samples, if that is what is counted) the newest forward pass has.

        For those who know better than the pool, which looks at the labels, or at the first tensor. Call it after the
        pass and before the optimizer's step; where the pool has seen no pass, it is the step's own number.

        Args:
            tokens: At least 0.

        Raises:
            ConfigError: it is no such number.
        """
        if isinstance(tokens, Tensor) and tokens.numel() == 1:
            tokens = tokens.item()  # type: ignore[assignment]
        if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 0:
            raise ConfigError([f"tokens must be a whole number of at least 0, found {tokens!r}"])
        if self._session is not None:
            self._session.count(tokens)

    def close(self, timeout_s: float | None = None) -> None:
        """Wait until every replica has closed and the last round is committed: all then stand on the same adapter.

        Args:
            timeout_s: Give up then; None waits for as long as the others train, and an hour longer than anything of
                the fleet has moved.

        Raises:
            TsugiError: the run has failed, or did not end in time.
        """
        if timeout_s is not None:
            check_seconds("timeout_s", timeout_s)
        if not self._detach() and self._session is not None:
            self._session.drain(timeout_s)

    def close_keeping(self, timeout_s: float | None = None) -> None:
        """As `close`, but the model keeps the values that it has now, which are this replica's alone.

        For a loop that has loaded the best of its own checkpoints at the end. The pool goes on without these values.

        Args:
            timeout_s: As in `close`.

        Raises:
            TsugiError: as from `close`.
        """
        if self._session is None or self._closed:
            self.close(timeout_s)
            return
        kept = self._session.set_aside()
        try:
            self.close(timeout_s)
        finally:
            with no_grad():
                for parameter, values in zip(self._session.engine.pool.parameters(), kept, strict=True):
                    parameter.copy_(values)

    def abandon(self, reason: str) -> None:
        """Leave at once without a last round: the other replicas fail with this reason."""
        if not self._detach() and self._session is not None:
            self._session.leave(reason)

    def __enter__(self) -> PlesioHandle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon(f"{kind.__name__}: {error}")

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        """A copy of the model takes no part in the pool: there the handle becomes None."""
        return type(None), ()

    def _detach(self) -> bool:
        """Let go of model and interpreter; true when that was done before. A forked child has no part in the pool."""
        if os.getpid() != self._process:
            return True
        was_closed, self._closed = self._closed, True
        if not was_closed:
            atexit.unregister(self._at_exit)
            for each in self._marked:
                each.__dict__.pop(ATTRIBUTE, None)
            if self._clip is not None:
                self._clip.remove()
        return was_closed

    def _local_figures(self) -> PoolFigures:
        if self._session is None:
            return PoolFigures(members=(self.replica,))
        return local_figures(self._session.engine)

    def _at_exit(self) -> None:
        """The interpreter ends and nobody has closed: well, if no exception has ended it."""
        error = getattr(sys, "last_value", None)
        if os.getpid() != self._process:
            return
        if error is not None:
            self.abandon(f"{type(error).__name__}: {error}")
        else:
            self.close(EXIT_TIMEOUT_S)
