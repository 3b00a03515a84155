"""What a run will cost: parameters, memory, bytes of a round, the straggler tax, time. No torch here.

Sizes come from the headers of the model's files, speeds from what is injected or from the newest run of the same
name. What is not known is left out.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from tsugi_cli.config.data_plane import EXCHANGE, data_plane
from tsugi_cli.config.faults import of_replica
from tsugi_cli.config.spec import RunSpec
from tsugi_cli.config.training import chosen
from tsugi_cli.console.format import clock, count, size
from tsugi_cli.finetune.activations import ON_CPU, logit_bytes, shape_of, token_bytes
from tsugi_cli.record.run_dir import RunPaths
from tsugi_kpool.core.rounds.reduction import reduction, sent_payloads
from tsugi_kpool.core.settings import Mode, Payload, Reduce
from tsugi_kpool.foreign import open_plain

from .lora_sizes import base_bytes, number_format, trained_numbers

FP32 = 4
"""Bytes of a number."""
MOMENTS = {
    "fleet_adamw": 3.0,
    "adamw_8bit": 0.5,
    "paged_adamw_8bit": 0.5,
    "lion": 1.0,
    "muon": 1.0,
    "adafactor": 0.0,
}
"""Of what is trained, in numbers of fp32; AdamW has both moments, the fleet's the signal's besides. Adafactor has
rows and columns only."""
POOL_COPIES = {Mode.LOCAL: 3.0, Mode.GRADIENT: 5.75}
"""Of what is trained, between rounds (docs/figures.md, `python benchmarks/engine/memory.py`)."""
ROUND_COPIES = 1.5
"""While a round is on its way."""
CODED_BITS = {
    Payload.FP32: 32.0,
    Payload.BF16: 16.0,
    Payload.INT8: 8.125,
    Payload.INT4: 4.5,
    Payload.INT2: 2.125,
}
"""Of a number in a round's payload, with its share of the block's scale: as `engine.wire` has it, without torch."""
SLOW_MBIT = 20.0
"""A home's upload: what a round takes there is said where all of it passes one machine's link."""
AROUND = 1.2
"""Times the bytes alone, from one round over an exchange to the next (`python benchmarks/exchange/links.py`)."""
HALF = ("bfloat16", "float16")
UNEQUAL = 1.05
MOST_HEADER = 100_000_000


@dataclass(frozen=True)
class Sizes:
    """Of a model and the LoRA on it, in numbers and bytes."""

    parameters: int
    trained: int
    base_bytes: int
    """In fp32 where the number format depends on a device that is not known yet."""


@dataclass(frozen=True)
class Speeds:
    """How fast replicas are, and where that is known from."""

    tokens_per_s: tuple[float, ...]
    """Of each replica; only ratios count where `relative`."""
    source: str
    relative: bool = False


def estimate(
    spec: RunSpec, folder: Path | None, tokens: float | None, report: Mapping[str, Any] | None = None
) -> dict[str, str]:
    """What a dry run says of costs, in words, as far as it is known.

    Args:
        spec: The run.
        folder: Where the model's files lie; None: they are not here yet.
        tokens: Supervised tokens of the run; None: nothing is prepared yet.
        report: What is known of the prepared data.
    """
    sizes = None if folder is None else sizes_of(shapes(folder), spec)
    speeds = injected(spec) or measured(spec, folder)
    return {
        **({} if sizes is None or folder is None else _costs(spec, sizes, activations(spec, folder, report or {}))),
        **({} if speeds is None else _speeds(speeds, tokens)),
    }


def shapes(folder: Path) -> dict[str, tuple[tuple[int, ...], int]]:
    """Name -> (shape, bytes) of every tensor in a folder's safetensors files; {} where they cannot be read."""
    found: dict[str, tuple[tuple[int, ...], int]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            found |= dict(_header(path.resolve()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
            return {}
    return found


def _header(path: Path) -> Iterator[tuple[str, tuple[tuple[int, ...], int]]]:
    with open_plain(path) as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > MOST_HEADER:
            raise ValueError(path)
        for name, entry in json.loads(file.read(length)).items():
            if name != "__metadata__":
                start, stop = entry["data_offsets"]
                yield name, (tuple(entry["shape"]), stop - start)


def sizes_of(tensors: Mapping[str, tuple[tuple[int, ...], int]], spec: RunSpec) -> Sizes | None:
    """Sizes of the model with this run's LoRA; None where the files say nothing."""
    if not tensors:
        return None
    own = {name: shape for name, (shape, _) in tensors.items()}
    trained = trained_numbers(own, spec.lora)
    if trained is None:
        return None
    numbers = sum(prod(shape) for shape in own.values())
    return Sizes(numbers, trained, base_bytes(own, spec.model, number_format(spec) or "float32"))


def pool_bytes(spec: RunSpec, trained: int) -> int:
    """Bytes of what is trained, its gradients, the optimizer's moments and the pool, while a round is on its way."""
    most = spec.topology.replicas + spec.topology.spare
    moments = MOMENTS.get(chosen(spec.train.optimizer, spec.kpool.mode, most), 2.0)
    return round(trained * FP32 * (2 + moments + POOL_COPIES[spec.kpool.mode] + ROUND_COPIES))


def activations(spec: RunSpec, folder: Path, report: Mapping[str, Any]) -> str | None:
    """What a micro-batch of the longest samples keeps on a worker while it is computed, in words; None: not known.

    Args:
        spec: The run.
        folder: Where the model's files lie.
        report: What is known of the prepared data: {} assumes samples of `data.max_tokens`, all of them supervised.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        shape = shape_of(config) if spec.model.attention != "eager" else None
    except (OSError, ValueError, AttributeError):
        return None
    if shape is None:
        return None
    if spec.train.batch_tokens == "auto":
        return "activations as far as there is room come"
    width = 2 if (number_format(spec) or "float32") in HALF else FP32
    at_once = tokens_at_once(spec, report)
    of_tokens = token_bytes(shape, spec.lora.rank, width, spec.model.gradient_checkpointing is True)
    share = report["supervised_tokens"] / report["tokens"] if report.get("tokens") else 1.0
    whole = at_once * of_tokens + logit_bytes(shape, at_once * share, width)
    unsure = ", in fp32" if number_format(spec) is None else ""
    gaps = "" if spec.topology.device in ("cuda", "xpu") else f" (on a CPU up to {ON_CPU:g} times that)"
    return f"about {size(whole)} activations of {at_once:,} tokens at once{unsure}{gaps}"


def tokens_at_once(spec: RunSpec, report: Mapping[str, Any]) -> int:
    """Tokens of a worker's part of a micro-batch whose samples are all as long as the longest."""
    sides = 2 if spec.train.objective == "dpo" else 1
    known = [int(each["up_to"]) for each in report.get("lengths") or ()]
    longest = spec.data.max_tokens * sides
    if known and not spec.data.packing:
        longest = min(longest, max(known))
    if isinstance(spec.train.batch_tokens, int):
        return max(longest, spec.train.batch_tokens)
    return -(-spec.train.micro_batch // spec.topology.workers) * longest


def _base_in_words(spec: RunSpec, sizes: Sizes) -> str:
    dtype = number_format(spec)
    if dtype is None:
        return f"{size(sizes.base_bytes)} base ({size(sizes.base_bytes / 2)} on a GPU)"
    form = dtype if spec.model.quantize == "none" else f"{spec.model.quantize}, the rest in {dtype}"
    return f"{size(sizes.base_bytes)} base in {form}"


def _costs(spec: RunSpec, sizes: Sizes, activations: str | None) -> dict[str, str]:
    kpool, others = spec.kpool, spec.topology.replicas - 1
    k = kpool.k if isinstance(kpool.k, int) else 1
    payload = sizes.trained * k / kpool.n * CODED_BITS[kpool.payload] / 8
    share = sizes.trained / sizes.parameters
    return {
        "parameters": f"{count(sizes.parameters)}; {count(sizes.trained)} more are trained ({share:.1%})",
        "memory": f"{_base_in_words(spec, sizes)}, {size(pool_bytes(spec, sizes.trained))} LoRA, gradients, "
        f"optimizer and pool on each worker; {activations or 'activations come'} on top",
        "payload": _payload(spec, payload) if others else "none",
    }


def _payload(spec: RunSpec, payload: float) -> str:
    """Where a round's payload goes, and what of it passes this machine's link."""
    others = spec.topology.replicas - 1
    if data_plane(spec) != EXCHANGE:
        if reduction(spec.kpool, others + 1) is Reduce.SCATTER:
            sent = size(payload * sent_payloads(spec.kpool, others + 1))
            return f"{size(payload)} a round of each replica, summed in two stages: it sends {sent}"
        return f"{size(payload)} a round from each replica to each of {others} other(s)"
    away = spec.topology.replicas - (spec.topology.here or 0)
    through = f"{size(away * payload)} into this machine and {size(away * payload)} out of it"
    of_all = f"{size(payload)} a round from each replica, and as much to it: {through} for {away} that join"
    return f"{of_all} ({_behind_a_slow_link(spec.kpool.payload, payload, away)})" if away else of_all


def _behind_a_slow_link(code: Payload, payload: float, away: int) -> str:
    """What a round takes where this machine's link is slow, and what fewer bits make of it."""
    every_s = AROUND * (away + 1) * payload * 8 / (SLOW_MBIT * 1e6)
    said = f"with {SLOW_MBIT:g} Mbit/s here a round every {every_s:.1f} s"
    ratio = CODED_BITS[Payload.INT4] / CODED_BITS[code]
    return said if ratio >= 1.0 else f"{said}; kpool.payload=int4: {ratio * every_s:.1f} s"


def injected(spec: RunSpec) -> Speeds | None:
    """Ratios of the speeds that `fault.slow` makes; None without."""
    if not spec.fault.slow:
        return None
    replicas = range(spec.topology.replicas)
    slowest = [max([1.0, *(each.value for each in of_replica(spec.fault.slow, replica))]) for replica in replicas]
    return Speeds(tuple(1.0 / each for each in slowest), "fault.slow", relative=True)


def measured(spec: RunSpec, model: Path | None) -> Speeds | None:
    """Those of the newest run of this name, of the same model and with as many replicas; None where there is none."""
    for folder in sorted(Path(spec.runs_dir).glob(f"*-{spec.name}"), reverse=True):
        found = _speeds_of(RunPaths(folder), model)
        if len(found) == spec.topology.replicas:
            return Speeds(found, folder.name)
    return None


def _speeds_of(paths: RunPaths, model: Path | None) -> tuple[float, ...]:
    """Tokens for each second of step, waits left out, as the straggler tax counts them; () where nothing is known."""
    try:
        with open_plain(paths.summary) as file:
            summary = json.loads(file.read(MOST_HEADER))
        if summary["model"] != str(model):
            return ()
        replicas: list[dict[str, Any]] = summary["replicas"]
        return tuple(float(each["tokens"]) / float(each["busy_s"]) for each in replicas if float(each["busy_s"]) > 0)
    except (OSError, ValueError, KeyError, TypeError):
        return ()


def tax(speeds: Sequence[float]) -> float:
    """Share of the fleet's tokens that lock-step loses, where every step is as slow as the slowest replica's."""
    return 1.0 - len(speeds) * min(speeds) / sum(speeds)


def _speeds(speeds: Speeds, tokens: float | None) -> dict[str, str]:
    slowest = min(range(len(speeds.tokens_per_s)), key=lambda each: speeds.tokens_per_s[each])
    ratio = max(speeds.tokens_per_s) / speeds.tokens_per_s[slowest]
    lost = tax(speeds.tokens_per_s)
    said = "none: replicas are about equally fast"
    if ratio >= UNEQUAL:
        said = f"lock-step would lose {lost:.0%} of this fleet: replica {slowest} is {ratio:.1f}x slower"
        said += " than the fastest"
    found = {"straggler tax": f"{said} ({speeds.source})"}
    if tokens is not None and not speeds.relative:
        seconds, rate = tokens / sum(speeds.tokens_per_s), sum(speeds.tokens_per_s)
        found["time"] = (
            f"about {clock(seconds)} for {tokens:,.0f} supervised tokens at {rate:,.0f} tok/s ({speeds.source})"
        )
    return found
