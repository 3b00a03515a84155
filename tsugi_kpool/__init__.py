"""K-Pool: a straggler-tolerant LoRA engine. A part of the distribution `tsugi`."""

from __future__ import annotations

from importlib import import_module as _import_module
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from ._version import VERSION as __version__

if _TYPE_CHECKING:
    from .engine.inside import init_process_group
    from .errors import (
        ConfigError,
        FencedError,
        LaunchError,
        MachineError,
        QuarantinedError,
        QuorumError,
        RoundError,
        SidebandError,
        TrainingError,
        TsugiError,
    )
    from .fleet_adamw import FleetAdamW
    from .library.callback import KPoolCallback
    from .library.figures import PoolFigures
    from .library.handle import PlesioHandle
    from .library.lora import KPoolLoraConfig
    from .library.plesio import plesio_init, plesio_shutdown

__all__ = [
    "ConfigError",
    "FencedError",
    "FleetAdamW",
    "KPoolCallback",
    "KPoolLoraConfig",
    "LaunchError",
    "MachineError",
    "PlesioHandle",
    "PoolFigures",
    "QuarantinedError",
    "QuorumError",
    "RoundError",
    "SidebandError",
    "TrainingError",
    "TsugiError",
    "__version__",
    "init_process_group",
    "plesio_init",
    "plesio_shutdown",
]

_HOMES = {
    "FleetAdamW": "fleet_adamw",
    "KPoolCallback": "library.callback",
    "KPoolLoraConfig": "library.lora",
    "PlesioHandle": "library.handle",
    "PoolFigures": "library.figures",
    "init_process_group": "engine.inside",
    "plesio_init": "library.plesio",
    "plesio_shutdown": "library.plesio",
}


def __getattr__(name: str) -> _Any:
    """Import a public name when it is first asked for: `import tsugi_kpool` imports no torch."""
    home = _HOMES.get(name, "errors" if name in __all__ and name != "__version__" else None)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(_import_module(f".{home}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*__all__, "__doc__", "__file__", "__name__", "__path__"})
