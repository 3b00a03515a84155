"""What a pool cannot be made of: every wrong value of a `KPoolLoraConfig`, one text each.

`lora.py`, which has that class, imports this file, so that here it is `Any`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from tsugi_kpool.core.settings import KPool, Mode, Payload, Reduce, Routing, SelectAt, Trigger, withdrawn

from .pool_numbers import PoolFloat, PoolInt, one

ADDRESS = re.compile(r"tcp://([^\s:/\[\]]+|\[[0-9a-fA-F:.]+\]):(\d{1,5})")

KEPT_INITS = (True, False, "gaussian", "orthogonal")
"""Initialisations that leave the base weights alone and give every module the same rank."""

REFUSED = {
    "rank_pattern": "every module of a pool has the same rank, n_adapters * r",
    "alpha_pattern": "every module of a pool has the same scaling, lora_alpha / r",
    "use_bdlora": "a block-diagonal LoRA is not a sum of slices",
    "use_qalora": "QALoRA has not been verified with a pool",
    "monteclora_config": "MonteCLoRA's sampler has parameters of its own outside the pool",
    "kasa_config": "KaSA changes the base weights, on every replica by itself",
    "velora_config": "VeLoRA has not been verified with a pool",
    "arrow_config": "Arrow routes between whole adapters, not between slices of one",
    "megatron_config": "tensor parallel LoRA is not supported",
}
"""Fields of LoraConfig that a pool does not support, and why."""

PATTERNS = ("rank_pattern", "alpha_pattern")

NAMES = {"n": "n_adapters", "k": "k_active", "eps": "buffer_convergence_eps"}
"""Our names of settings that `core.settings` calls otherwise."""

FLAGS = ("overlap", "error_feedback", "trust_network")
WHOLE = ("n_adapters", "k_active", "count", "min_steps", "max_steps", "max_staleness")
CHOICES = {
    "trigger": Trigger,
    "payload": Payload,
    "reduce": Reduce,
    "routing": Routing,
    "select_at": SelectAt,
    "mode": Mode,
}


def wrong_targets(found: Any) -> list[str]:
    """PEFT would stumble over it."""
    if found is None or isinstance(found, str):
        return []
    if isinstance(found, list | tuple | set | frozenset) and all(isinstance(each, str) for each in found):
        return []
    return [f"target_modules must be names of modules, a pattern or None, found {found!r}"]


def problems(config: Any, settings: Callable[[], KPool]) -> list[str]:
    """Everything that is wrong, one text each.

    Args:
        config: A KPoolLoraConfig.
        settings: Makes the engine's settings of it, which needs values of the right types.
    """
    found = _wrong_types(config) or _wrong_choices(config) or _broken_rules(config, settings())
    match = ADDRESS.fullmatch(str(config.sideband_addr))
    if match is None or int(match.group(2)) > 65535:
        form = "tcp://host:port or tcp://[IPv6]:port"
        found.append(f"sideband_addr must have the form {form}, found {config.sideband_addr!r}")
    found += [f"{name} cannot be used with a pool: {why}" for name, why in REFUSED.items() if _uses(config, name)]
    if config.init_lora_weights not in KEPT_INITS:
        found.append(
            f"init_lora_weights={config.init_lora_weights!r} cannot be used with a pool: it changes base weights "
            "or ranks, on every replica by itself"
        )
    return found


def _uses(config: Any, name: str) -> bool:
    if name in PATTERNS and _fused(config):
        return False
    return bool(getattr(config, name, None))  # older versions of PEFT lack some


def _fused(config: Any) -> bool:
    """Whether the patterns are PEFT's own: k experts' matrices in one parameter have k times rank and alpha."""
    ranks, alphas = config.rank_pattern or {}, config.alpha_pattern or {}
    times = {name: rank / config.r for name, rank in ranks.items()}
    own = all(name.startswith(r".*\.") for name in ranks) and bool(config.target_parameters)
    return own and {name: each * config.lora_alpha for name, each in times.items()} == alphas


def _wrong_types(config: Any) -> list[str]:
    whole = {"r": one(config.r)} | {name: getattr(config, name) for name in WHOLE}
    if config.k_active == "auto":
        del whole["k_active"]
    numbers = {
        "lora_alpha": one(config.lora_alpha),
        "round_timeout_s": config.round_timeout_s,
        "fire_delay_s": config.fire_delay_s,
        "linger": config.linger,
    }
    found = [f"{name} must be a whole number, found {each!r}" for name, each in whole.items() if not _whole(each)]
    found += [f"{name} must be a number, found {each!r}" for name, each in numbers.items() if not _number(each)]
    eps = config.buffer_convergence_eps
    if eps != "auto" and not _number(eps):
        found.append(f'buffer_convergence_eps must be a number or "auto", found {eps!r}')
    clip = config.grad_clip
    if clip is not None and (not _number(clip) or clip <= 0):
        found.append(f"grad_clip must be a positive number or None, found {clip!r}")
    flags = {name: getattr(config, name) for name in FLAGS}
    wrong = {name: each for name, each in flags.items() if not isinstance(each, bool)}
    return found + [f"{name} must be True or False, found {each!r}" for name, each in wrong.items()]


def _wrong_choices(config: Any) -> list[str]:
    return [
        f"{name} must be one of {', '.join(choices)}, found {getattr(config, name)!r}"
        + withdrawn(f"kpool.{name}", getattr(config, name))
        for name, choices in CHOICES.items()
        if getattr(config, name) not in list(choices)
    ]


def _broken_rules(config: Any, settings: KPool) -> list[str]:
    found = [own_names(text) for text in settings.problems()]
    if config.adapter_r < 1:
        found.append(f"r must be at least 1, found {config.adapter_r}")
    if config.adapter_alpha <= 0:
        found.append(f"lora_alpha must be positive, found {config.adapter_alpha}")
    if config.grad_clip is not None and config.mode == Mode.LOCAL:
        found.append("grad_clip is of gradient mode; in local mode clip in your loop, before the step")
    return found


def assigned(config: Any) -> list[str]:
    """Assigning to a field does not rebuild the pool's numbers: the config would not mean what it says."""
    same = isinstance(config.r, PoolInt) and config.r == config.n_adapters * config.r.one
    if same and isinstance(config.lora_alpha, PoolInt | PoolFloat):
        return []
    return ["r, lora_alpha or n_adapters was assigned to: use dataclasses.replace, which keeps them together"]


def own_names(text: str) -> str:
    """A text about `kpool.*` settings with the names that KPoolLoraConfig gives them."""
    return re.sub(r"kpool\.(\w+)", lambda match: NAMES.get(match[1], match[1]), text)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return _whole(value) or (isinstance(value, float) and math.isfinite(value))
