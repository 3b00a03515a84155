"""How many numbers a LoRA has and how many bytes its base, from names and shapes alone. No torch here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from math import prod

from tsugi_cli.config.schema import did_you_mean
from tsugi_cli.config.spec import Lora, Model, RunSpec

Shape = tuple[int, ...]
BITS = {"float32": 32.0, "bfloat16": 16.0, "float16": 16.0}
QUANTISED_BITS = {"4bit": 4 + 8 / 64 + 32 / (64 * 256), "8bit": 8.0}
"""Of a number in a linear layer. nf4 has a byte of scale for 64 numbers and a scale of fp32 for 256 of these."""
ROW_SCALE_BITS = 32
"""With 8bit each row of a matrix has a scale."""
TIED = frozenset({"lm_head"})
"""A head that is the embedding once more is a module, and not in the files."""
HALF_BY_ITSELF = ("cuda", "xpu")
"""Devices where `model.dtype=auto` is one of 16 bits."""


def trained_numbers(shapes: Mapping[str, Shape], lora: Lora) -> int | None:
    """Numbers that are trained; None where the files do not say: stacked experts, or a module that has no tensor.

    Args:
        shapes: Of every tensor in the model's files.
        lora: What PEFT puts on the model.
    """
    if lora.target_parameters:
        return None
    saved = [_below(each, shapes) for each in lora.modules_to_save or ()]
    if not all(saved):
        return None  # a head that is tied to the embedding is not in the files
    chosen = [shape for name, shape in shapes.items() if is_target(name, shape, lora)]
    magnitudes = sum(shape[0] for shape in chosen) if lora.dora else 0
    whole = {name for names in saved for name in names}
    return sum(lora.rank * sum(shape) for shape in chosen) + magnitudes + sum(prod(shapes[name]) for name in whole)


def is_target(name: str, shape: Shape, lora: Lora) -> bool:
    """Whether PEFT puts a LoRA on this tensor's module: in target_modules, in the layers, and not excluded."""
    module = _linear(name, shape)
    if module is None or _named(module, lora.exclude_modules or ()) or _saved(module, lora):
        return False
    if lora.target_modules == "all-linear":
        return _hidden(module)
    return _named(module, lora.target_modules) and _in_layers(module, lora.layers)


def without_module(names: Iterable[str], lora: Lora) -> list[str]:
    """Notes about names in `lora.target_modules` that no module in the files has: PEFT leaves them out unsaid.

    Args:
        names: Of every tensor in the model's files; nothing is noted when there are none.
        lora: What PEFT puts on the model.
    """
    targets = lora.target_modules
    modules = {name.rpartition(".")[0] for name in names}
    if not modules or targets == "all-linear" or lora.target_parameters:
        return []
    wanted: list[str | list[str]] = [targets] if isinstance(targets, str) else [[each] for each in targets] or [[]]
    unmatched = [each for each in wanted if not any(_named(module, each) for module in modules | TIED)]
    return [_unmatched(each, modules) for each in unmatched]


def _unmatched(wanted: str | list[str], modules: Iterable[str]) -> str:
    if not wanted:
        return "lora.target_modules is empty: there is nothing to train; all-linear takes every linear module"
    if isinstance(wanted, str):
        return f"lora.target_modules: no module in the model's files matches the pattern {wanted!r}"
    known = sorted({module.rpartition(".")[2] for module in modules} - {""})
    told = f"lora.target_modules: no module in the model's files is called {wanted[0]}"
    return f"{told}{did_you_mean(wanted[0], known) or '; there are ' + ', '.join(known)}"


def _linear(name: str, shape: Shape) -> str | None:
    module, _, kind = name.rpartition(".")
    return module if kind == "weight" and len(shape) == 2 else None


def _hidden(module: str) -> bool:
    """Neither an embedding nor the head."""
    return "embed" not in module and not module.endswith("lm_head")


def _named(module: str, names: str | Sequence[str]) -> bool:
    """As PEFT reads it: a pattern, or ends of names."""
    if isinstance(names, str):
        return bool(names) and re.fullmatch(names, module) is not None
    return any(module == each or module.endswith(f".{each}") for each in names)


def _saved(module: str, lora: Lora) -> bool:
    return any(re.match(rf"(^|.*\.){each}($|\..*)", module) for each in lora.modules_to_save or ())


def _in_layers(module: str, layers: Sequence[int] | None) -> bool:
    if not layers:
        return True
    found = re.match(r".*?\.[^.]*\.(\d+)\.", module)
    return found is not None and int(found.group(1)) in layers


def _below(module: str, shapes: Mapping[str, Shape]) -> list[str]:
    return [name for name in shapes if re.match(rf"(^|.*\.){module}\..*", name)]


def number_format(spec: RunSpec) -> str | None:
    """The base's number format; None where it depends on a device that is not known before the run."""
    if spec.model.dtype != "auto":
        return spec.model.dtype
    if spec.model.quantize != "none" or spec.topology.device in HALF_BY_ITSELF:
        return "bfloat16"
    return None if spec.topology.device == "auto" else "float32"


def base_bytes(shapes: Mapping[str, Shape], model: Model, dtype: str) -> int:
    """Bytes of the base on a device, in this number format or as it is quantised."""
    return round(sum(_bits(name, shape, model, dtype) for name, shape in shapes.items()) / 8)


def _bits(name: str, shape: Shape, model: Model, dtype: str) -> float:
    module = _linear(name, shape)
    if model.quantize == "none" or module is None or not _hidden(module):
        return prod(shape) * BITS[dtype]
    scales = shape[0] * ROW_SCALE_BITS if model.quantize == "8bit" else 0
    return prod(shape) * QUANTISED_BITS[model.quantize] + scales
