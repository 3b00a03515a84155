"""K-Pool: a straggler-tolerant LoRA engine."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .engine.inside import init_process_group
    from .errors import ConfigError, TsugiError
    from .fleet_adamw import FleetAdamW
    from .library.callback import KPoolCallback
    from .library.lora import KPoolLoraConfig
    from .library.plesio import PlesioHandle, plesio_init, plesio_shutdown

__all__ = [
    "ConfigError",
    "FleetAdamW",
    "KPoolCallback",
    "KPoolLoraConfig",
    "PlesioHandle",
    "TsugiError",
    "init_process_group",
    "plesio_init",
    "plesio_shutdown",
]

_HOMES = {
    "ConfigError": "errors",
    "FleetAdamW": "fleet_adamw",
    "KPoolCallback": "library.callback",
    "KPoolLoraConfig": "library.lora",
    "PlesioHandle": "library.plesio",
    "TsugiError": "errors",
    "init_process_group": "engine.inside",
    "plesio_init": "library.plesio",
    "plesio_shutdown": "library.plesio",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: `import tsugi_kpool` imports no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
