"""Whether a model and a config make a pool: what is refused before anything starts."""

from __future__ import annotations

import torch
from peft import PeftModel, get_peft_model_state_dict
from torch import nn

from tsugi_kpool.core.settings import KPool
from tsugi_kpool.engine.pool import AdapterPool
from tsugi_kpool.engine.pool_parts import experts_of
from tsugi_kpool.engine.shards import local
from tsugi_kpool.errors import ConfigError

from .lora import KPoolLoraConfig

PADDED = (
    "the LoRA of {name} has rank {rank}, and the config says {own:d}: prepare_model_for_compiled_hotswap pads it "
    "with rows that are of no adapter; leave it out, or give target_rank={own:d}"
)

SAME_BASE = (
    "this model's base is in a pool already, under another PEFT model: close that handle first, with "
    "plesio_shutdown(the_other_model), and load the base anew"
)

ATTRIBUTE = "_plesio_handle"
"""Where a model keeps its handle."""


def check_config(config: KPoolLoraConfig) -> KPoolLoraConfig:
    """The config itself, if it is one.

    Raises:
        ConfigError: it is something else.
    """
    if not isinstance(config, KPoolLoraConfig):
        raise ConfigError([f"a pool needs the KPoolLoraConfig that get_peft_model was given, found {_kind(config)}"])
    return config


def check_seconds(name: str, value: float) -> None:
    """Raise what tells that this is no duration.

    Raises:
        ConfigError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise ConfigError([f"{name} must be seconds, at least 0, found {value!r}"])


def uncompiled(model: nn.Module) -> nn.Module:
    """The module inside what torch.compile returned; both share their parameters and hooks."""
    inner = getattr(model, "_orig_mod", model)
    return inner if isinstance(inner, nn.Module) else model


def _kind(value: object) -> str:
    name = type(value).__name__
    return f"an {name}" if name[0] in "AEIOU" else f"a {name}"


def check_model(model: nn.Module, config: KPoolLoraConfig, settings: KPool) -> str:
    """PEFT's name of the pool's LoRA.

    Raises:
        ConfigError: the model does not hold the pool that the config describes, or trains what would not be saved.
    """
    if not isinstance(model, PeftModel):
        raise ConfigError([f"plesio_init needs what get_peft_model returned, found {_kind(model)}"])
    if model.__dict__.get(ATTRIBUTE) is not None:
        raise ConfigError(
            ["plesio_init was called with this model already; close it first with plesio_shutdown(model)"]
        )
    if model.get_base_model().__dict__.get(ATTRIBUTE) is not None:
        raise ConfigError([SAME_BASE])
    name = model.active_adapter
    if not isinstance(name, str) or getattr(model.peft_config[name], "r", None) != config.r:
        raise ConfigError([f"the model's active adapter is not the one of this config (rank {config.r:d})"])
    _check_shares(model.peft_config[name], config)
    pool = {id(parameter) for parameter in AdapterPool(model, settings.n, name, shape_of).parameters()}
    _check_padding(model, name, config)
    kept = _saved(model, name)
    inside = [(each, parameter) for each, parameter in model.named_parameters() if id(parameter) in pool]
    found = [f"{each} is part of the pool but frozen" for each, one in inside if not one.requires_grad]
    found += [
        f"{each} is trained, but PEFT does not save it with the adapter: name its module in modules_to_save"
        for each, one in inside
        if _place_of(one) not in kept
    ]
    if found:
        raise ConfigError(found[:10])
    return name


def _check_shares(built: object, config: KPoolLoraConfig) -> None:
    """A pool of another N may have the same rank in all, but its slices are others."""
    if not isinstance(built, KPoolLoraConfig):
        return  # a plain LoRA that is taken as a pool
    theirs, ours = (
        {"n_adapters": each.n_adapters, "r": each.adapter_r, "lora_alpha": each.adapter_alpha}
        for each in (built, config)
    )
    found = [f"{name}={value!r} (found {ours[name]!r})" for name, value in theirs.items() if value != ours[name]]
    if found:
        raise ConfigError([f"the model was built as a pool of {', '.join(found)}: take its own config"])


def _check_padding(model: nn.Module, adapter: str, config: KPoolLoraConfig) -> None:
    """Rows that were added are of no adapter: some of the pool would be nothing but zeros."""
    for name, module in model.named_modules():
        lora_a = getattr(module, "lora_A", None)
        if isinstance(lora_a, nn.ModuleDict) and adapter in lora_a:
            rank = lora_a.get_parameter(f"{adapter}.weight").shape[0] // experts_of(module)
            if rank != config.r:
                raise ConfigError([PADDED.format(name=name, rank=rank, own=config.r)])


def _saved(model: nn.Module, adapter: str) -> set[int]:
    """Where the values lie that save_pretrained writes."""
    values = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
    return {_place_of(value) for value in values.values()}


def _place_of(value: torch.Tensor) -> int:
    """Where a tensor's values lie, or this worker's shard of them."""
    return local(value.detach()).data_ptr()


def shape_of(parameter: nn.Parameter) -> nn.Parameter:
    """A stand-in that takes no memory, for a look at what a pool would be made of."""
    return nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype, device="meta"))
