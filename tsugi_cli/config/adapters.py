"""`lora.from=FOLDER`: the shape of the adapter that is trained further, read before anything starts."""

from __future__ import annotations

import json
from collections.abc import Mapping, MutableMapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from tsugi_kpool.foreign import read_plain

from . import files
from .overrides import conf_dir
from .spec import Lora

KEY = "lora.from_adapter"
CONFIG = "adapter_config.json"
MOST_BYTES = 10_000_000
PEFT_NAMES = {
    "lora.rank": "r",
    "lora.alpha": "lora_alpha",
    "lora.target_modules": "target_modules",
    "lora.exclude_modules": "exclude_modules",
    "lora.target_parameters": "target_parameters",
    "lora.modules_to_save": "modules_to_save",
    "lora.layers": "layers_to_transform",
    "lora.rslora": "use_rslora",
    "lora.dora": "use_dora",
}
"""Our setting -> PEFT's field: what an adapter's own configuration says."""
FOREIGN = ("rank_pattern", "alpha_pattern", "lora_bias", "trainable_token_indices", "layer_replication", "use_bdlora")
"""Fields that a run has no setting for."""


def problem(folder: str) -> str | None:
    """Why this is no folder of a LoRA that can be trained further; None when it is one."""
    if not files.is_dir(folder):
        return files.no_such(folder, "directory")
    try:
        found = read(folder)
    except (OSError, ValueError) as error:
        return f"{folder} is no PEFT adapter: {CONFIG} cannot be read ({getattr(error, 'strerror', None) or error})"
    if found.get("peft_type") != "LORA":
        return f"{folder} is an adapter of type {found.get('peft_type')!r}; only a LoRA can be trained further"
    if not files.is_file(f"{folder}/adapter_model.safetensors"):
        return f"{folder} has no adapter_model.safetensors"
    kind = found.get("init_lora_weights")
    if isinstance(kind, str) and kind not in ("gaussian", "orthogonal"):
        return f"{folder} began with init_lora_weights={kind}, which has changed its base model: have PEFT convert it"
    used = [name for name in FOREIGN if found.get(name)]
    if found.get("bias") not in (None, "none"):
        used.append("bias")
    return f"{folder} uses {', '.join(used)}, which a run has no setting for" if used else None


def read(folder: str) -> dict[str, Any]:
    """The adapter's configuration.

    Raises:
        OSError: there is none.
        ValueError: it is no JSON object.
    """
    found = json.loads(read_plain(Path(folder).expanduser() / CONFIG, MOST_BYTES))
    if not isinstance(found, dict):
        raise ValueError("it holds no object")
    return found


def adopt(tree: Any, named: Mapping[str, str]) -> list[str]:
    """Put the adapter's rank, alpha and modules into a run's tree, in place; a text for all that contradicts them.

    Args:
        tree: The composed configuration.
        named: What the command line says, by key.
    """
    lora = tree.get("lora") if isinstance(tree, dict) else None
    folder = lora.get("from_adapter") if isinstance(lora, MutableMapping) else None
    if not isinstance(lora, MutableMapping) or not isinstance(folder, str):
        return []
    if (text := problem(folder)) is not None:
        return [f"lora.from: {text}"]
    import yaml

    defaults = yaml.safe_load((conf_dir() / "lora" / "default.yaml").read_text(encoding="utf-8"))
    found, problems = read(folder), []
    for key, field in PEFT_NAMES.items():
        name = key.partition(".")[2]
        own, wanted = _plain(found.get(field), defaults[name]), lora.get(name)
        if _plain(wanted, None) != own and (key in named or wanted != defaults[name]):
            problems.append(f"{key}={wanted}: the adapter in lora.from has {own}, and goes on with it")
        lora[name] = own
    return problems


def described(lora: Lora) -> str:
    """Rank, alpha, modules, and every option that is not at its default."""
    modules = lora.target_modules if isinstance(lora.target_modules, str) else ", ".join(lora.target_modules)
    said = {"rank", "alpha", "target_modules"}
    others = [each for each in fields(Lora) if each.name not in said and getattr(lora, each.name) != each.default]
    more = [f"{each.name}={getattr(lora, each.name)}" for each in others]
    return ", ".join([f"rank {lora.rank}, alpha {lora.alpha:g} on {modules}", *more])


def _plain(value: Any, default: Any) -> Any:
    """A field as our settings write it: lists sorted, and what is empty absent."""
    if isinstance(value, int) and not isinstance(value, bool) and default is None:
        return value
    if isinstance(value, list):
        return sorted(value) or None
    return default if value is None else value
