"""The update rule for a pool's settings."""

from __future__ import annotations

from tsugi_kpool.codec.keeper import Keeper
from tsugi_kpool.core.settings import KPool, Mode, Reduce, Trigger

from .gradient import GradientUpdate, OptimizerFactory
from .local import LocalUpdate
from .pool import AdapterPool
from .update import UpdateRule


def update_rule(
    pool: AdapterPool,
    settings: KPool,
    optimizer: OptimizerFactory | None,
    grad_clip: float | None,
    decay_tokens: float | None,
) -> UpdateRule:
    """Return the update rule of `kpool.mode`; the arguments are those of `KPoolEngine`."""
    measure = settings.trigger is Trigger.CONVERGENCE and not isinstance(settings.eps, str)
    if settings.mode is Mode.GRADIENT:
        return GradientUpdate(pool, optimizer, grad_clip, settings.max_staleness, measure, decay_tokens)
    scatters = settings.reduce is not Reduce.GATHER
    keeper = Keeper(pool.n, pool.size, settings.payload) if scatters else None
    return LocalUpdate(pool, measure, keeper)
