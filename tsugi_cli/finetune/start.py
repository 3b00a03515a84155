"""Start values that are taken out of the base weights: PiSSA (Meng et al. 2024) and OLoRA (Büyükakyüz 2024).

The LoRA begins with a part of each weight W: A0 and B0, and the base keeps W - s * B0 @ A0, with s the scaling. They
are computed once and kept in the run's directory, where all replicas read them. Other machines compute their own, and
the hub compares a digest. What is exported is for W itself: [A, A0] and [B, -B0], a plain LoRA of twice the rank.
"""

from __future__ import annotations

import copy
import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from tsugi_cli.config.spec import Lora
from tsugi_kpool.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

NAME = "default"
"""Of PEFT's adapter."""

MATRICES = ("lora_A", "lora_B")

Values = dict[str, "Tensor"]
"""Name of a LoRA matrix, as in an adapter's file -> what it begins with, fp32."""


def take_out(model: Any, values: Values) -> None:
    """Give the LoRA its start values and the base what is left, in place."""
    from peft.utils.other import transpose

    for name, layer in _layers(model):
        a, b = values[f"{name}.lora_A.weight"], values[f"{name}.lora_B.weight"]
        layer.lora_A[NAME].weight.data = a.clone()
        layer.lora_B[NAME].weight.data = b.clone()
        weight = layer.get_base_layer().weight
        change = transpose(layer.scaling[NAME] * (b @ a), layer.fan_in_fan_out)
        weight.data = (weight.data.float() - change).to(weight.dtype)


def start_values(model: Any, lora: Lora, file: Path | None, earlier: Path | None = None) -> Values:
    """What the LoRA of this model begins with.

    Args:
        model: PEFT's, on the CPU; its base is the model's own, and stays it.
        lora: Says how.
        file: Where the values are, or will be from now on; None computes them and keeps nothing.
        earlier: Those of the run that this one goes on from, if it has any.

    Raises:
        ConfigError: a module takes no such values.
    """
    from safetensors.torch import load_file, save_file

    if file is None:
        return _computed(model, str(lora.init))
    with FileLock(file.with_name(f".{file.name}.lock")):
        if not file.exists():
            scratch = file.with_name(f".{file.name}.tmp")
            if earlier is not None and earlier.is_file():
                shutil.copyfile(earlier, scratch)
            else:
                save_file(_computed(model, str(lora.init)), scratch)
            scratch.rename(file)
    return load_file(file)  # type: ignore[no-any-return]


def digest(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def plain(config: Any, tensors: Values, values: Values) -> tuple[Any, Values]:
    """Configuration and tensors of the adapter that says the same on the model's own weights.

    Args:
        config: PEFT's, of the adapter as it was trained.
        tensors: The adapter as it was trained.
        values: What it began with.
    """
    import torch

    found = copy.deepcopy(config)
    found.r *= 2
    found.lora_alpha *= 2**0.5 if found.use_rslora else 2  # so that the scaling stays
    joined = dict(tensors)
    for name, first in values.items():
        now = tensors[name].cpu()
        is_a = name.endswith("lora_A.weight")
        joined[name] = torch.cat([now, first], 0) if is_a else torch.cat([now, -first], 1)
    return found, joined


def on_its_own_weights(model: Any, lora: Lora, file: Path) -> Any:
    """The base model, as it was before, with the plain adapter that says what a pool's values and their start say.

    Args:
        model: PEFT's, with the trained values, on the model's own weights.
        lora: How it began.
        file: With what it began; computed again where that is not there.
    """
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    values = start_values(model, lora, file if file.exists() else None)
    config, tensors = plain(model.peft_config[NAME], get_peft_model_state_dict(model), values)
    found = get_peft_model(model.unload(), config)
    set_peft_model_state_dict(found, tensors)
    return found


def _layers(model: Any) -> Iterator[tuple[str, Any]]:
    """PEFT's LoRA modules by name."""
    for name, module in model.named_modules():
        if NAME in getattr(module, "lora_A", ()):
            yield name, module


def _computed(model: Any, kind: str) -> Values:
    """By PEFT itself, layer by layer. The model stays as it was, and so do torch's random numbers."""
    import torch

    if any(len(getattr(each, "lora_embedding_A", ())) for each in model.modules()):
        raise ConfigError([f"lora.init={kind}: embeddings take no such start values; leave them out, or init=true"])
    found: Values = {}
    embedding = model.get_base_model().get_input_embeddings().weight
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for name, layer in _layers(model):
            takes = type(layer).__name__ == "Linear" and not (kind == "olora" and layer.fan_in_fan_out)
            if (
                not takes or layer.get_base_layer().weight is embedding
            ):  # what is also the embedding would change both
                raise ConfigError(
                    [f"lora.init={kind}: {name} takes no such start values; leave it out, or init=true"]
                )
            found |= {f"{name}.{part}.weight": values for part, values in _of_layer(layer, kind).items()}
            short = [part for part in MATRICES if found[f"{name}.{part}.weight"].shape != _matrix(layer, part).shape]
            if short:
                least = min(layer.get_base_layer().weight.shape)
                raise ConfigError([f"lora.init={kind}: lora.rank must not exceed {least}, the size of {name}"])
    return found


def _of_layer(layer: Any, kind: str) -> Values:
    """PEFT changes the layer's own weights; they are put back."""
    weights = [layer.get_base_layer().weight, *(_matrix(layer, part) for part in MATRICES)]
    before = [each.data.clone() for each in weights]
    try:
        layer.olora_init(NAME) if kind == "olora" else layer.pissa_init(NAME, kind)
        return {part: _matrix(layer, part).data.float().clone().contiguous() for part in MATRICES}
    finally:
        for weight, values in zip(weights, before, strict=True):
            weight.data = values


def _matrix(layer: Any, part: str) -> Any:
    return getattr(layer, part)[NAME].weight
