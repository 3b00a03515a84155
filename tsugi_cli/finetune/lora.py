"""The LoRA around the base model: made by PEFT from `lora.*`, trained in fp32, or read from an adapter."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsugi_cli.config.spec import Lora
from tsugi_kpool.errors import ConfigError

from .start import digest, start_values, take_out

if TYPE_CHECKING:
    from peft import LoraConfig
    from torch import nn

STATE_SPACE = {
    "mamba": ("in_proj", "x_proj", "embeddings"),
    "falcon_mamba": ("in_proj", "x_proj", "embeddings"),
    "mamba2": ("in_proj", "embeddings"),
}
"""Kind of model -> modules that a LoRA works on. The others are read past their module by the fused scan."""


def add_pool(base: Any, lora: Lora, start: Path | None = None, earlier: Path | None = None) -> Any:
    """Wrap the base model with one LoRA, which the pool cuts into its adapters.

    Args:
        base: On the CPU, or nowhere ("meta"). With an `init` that takes the LoRA out of it, its weights are changed.
        lora: What kind of LoRA.
        start: Where its start values are kept, if they are taken out of the base; None: nowhere.
        earlier: The same file of the run that this one goes on from.

    Raises:
        ConfigError: PEFT cannot put it there, or the adapter to start from is another one than `lora` says.
    """
    from peft import get_peft_model

    try:
        model = get_peft_model(base, config_of(lora, base))
    except ValueError as error:
        raise ConfigError([f"lora: {error}"]) from error
    if lora.changes_base:
        take_out(model, start_values(model, lora, start, earlier))
    _in_fp32(model)
    if lora.from_adapter is not None:
        _start_from(model, Path(lora.from_adapter).expanduser())
    return model


def empty_pool(base: Any, lora: Lora) -> Any:
    """The same around a base model without values ("meta"): parameters of the same names, shapes and dtypes.

    Raises:
        ConfigError: PEFT cannot put it there.
    """
    import torch

    with torch.device("meta"):
        return add_pool(base, replace(unchanged(lora), init=True))


def unchanged(lora: Lora) -> Lora:
    """The same on the model's own weights and from nothing: for values that come from elsewhere, such as anchors."""
    return replace(lora, init=True if lora.changes_base else lora.init, from_adapter=None)


def start_of(lora: Lora, start: Path) -> str:
    """What replicas compare of what they begin with: a hash of that file; "" where all draw the same.

    Args:
        lora: What kind of LoRA.
        start: Where its start values are, if they were taken out of the base.
    """
    if lora.changes_base:
        return digest(start)
    if lora.from_adapter is None:
        return ""
    return digest(Path(lora.from_adapter).expanduser() / "adapter_model.safetensors")


def config_of(lora: Lora, base: Any) -> LoraConfig:
    """PEFT's own configuration of it."""
    from peft import LoraConfig

    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=_modules(lora, base),
        exclude_modules=lora.exclude_modules,
        target_parameters=lora.target_parameters,
        modules_to_save=lora.modules_to_save,
        layers_to_transform=lora.layers,
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        init_lora_weights=unchanged(lora).init,
        task_type="CAUSAL_LM",
    )


def _modules(lora: Lora, base: Any) -> str | list[str]:
    """The modules that are named; in place of all linear ones of a state space model those that work.

    Raises:
        ConfigError: a state space model's module is named that a LoRA has no effect on.
    """
    kind = getattr(getattr(base, "config", None), "model_type", None)
    works = STATE_SPACE.get(kind or "")
    if works is None:
        return lora.target_modules
    if lora.target_modules == "all-linear":
        return [name for name in works if name != "embeddings"]
    named = [] if isinstance(lora.target_modules, str) else lora.target_modules
    idle = [name for name in named if name not in works]
    if idle:
        raise ConfigError([f"lora.target_modules: {', '.join(idle)} of {kind} takes no LoRA; {', '.join(works)} do"])
    return lora.target_modules


def _in_fp32(model: Any) -> None:
    """The pool is trained in fp32, also beside a base in half precision: what goes in and out is cast."""
    import torch

    for module in model.modules():
        own = [each for each in module.parameters(recurse=False) if each.requires_grad]
        half = next((each.dtype for each in own if each.dtype is not torch.float32), None)
        if half is None:
            continue
        module.float()
        module.register_forward_pre_hook(partial(_cast, dtype=torch.float32))
        module.register_forward_hook(partial(_cast_back, dtype=half))


def _cast(_: nn.Module, inputs: tuple[Any, ...], dtype: Any) -> tuple[Any, ...]:
    return tuple(
        each.to(dtype) if hasattr(each, "is_floating_point") and each.is_floating_point() else each for each in inputs
    )


def _cast_back(_: nn.Module, __: tuple[Any, ...], output: Any, dtype: Any) -> Any:
    return output.to(dtype) if hasattr(output, "is_floating_point") and output.is_floating_point() else output


def _start_from(model: Any, folder: Path) -> None:
    """Take the adapter's values.

    Raises:
        ConfigError: it has other tensors than this model's LoRA.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from peft.utils import load_peft_weights

    values = load_peft_weights(str(folder), device="cpu")
    expected = get_peft_model_state_dict(model)
    wrong = list(expected.keys() ^ values.keys())
    wrong += [name for name in expected.keys() & values.keys() if expected[name].shape != values[name].shape]
    if wrong:
        raise ConfigError([f"lora.from={folder} is no adapter of this model: {sorted(wrong)[0]} does not fit"])
    set_peft_model_state_dict(model, values)
