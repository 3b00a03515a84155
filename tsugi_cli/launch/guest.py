"""Validation of what a hub sends to `tsugi join`: the place, and the run's configuration. Nothing is used before it.

The hub may say what is trained. It never says which file or folder of this machine is read or written: such settings
are this machine's own (LOCAL), and the hub's values for them are ignored. docs/security.md has the whole list.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from tsugi_cli.config import adapters, bounded_yaml, files, rules, schema
from tsugi_cli.config.bounded_yaml import BadYaml
from tsugi_cli.config.compose import config_hash
from tsugi_cli.config.schema import Leaves, did_you_mean
from tsugi_cli.config.spec import RunSpec
from tsugi_cli.data.facts import Facts
from tsugi_kpool.about import about
from tsugi_kpool.core import likeness
from tsugi_kpool.core.messages import Slot
from tsugi_kpool.errors import ConfigError, LaunchError
from tsugi_kpool.sideband import keys as sideband_keys

DATA = ("data.path", "data.eval", "data.test", "data.mix")
"""Settings that name files of this machine: the hub's names are shown, and never opened."""
LOCAL = (
    *DATA,
    "model.path",
    "lora.from_adapter",
    "topology.address",
    "topology.device",
    "topology.threads_per_worker",
    "topology.workers",
    "train.micro_batch",
    "sideband.hub_timeout_s",
    "runs_dir",
)
"""Settings that may differ between machines without changing what is trained: the hub compares data and pool."""
MOST_WORKERS = 64
"""Most processes that a hub may start here; nodes have 16 GPUs at most."""
LARGEST = 2.0**53
"""Upper limit of every number in a configuration."""
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
_OUR_OWN: dict[str, Any] = {"runs_dir": "runs", "topology.address": None, "topology.hosts": [], "sideband.keys": None}
"""Keys whose values are meaningless on this machine -> the value here, unless the user sets another."""


def localised(config: str, overrides: Sequence[str], given: bool = False) -> RunSpec:
    """Return the run's configuration with this machine's own settings in it.

    Args:
        config: The hub's.
        overrides: The user's.
        given: The hub gives the prepared data, so no file needs to be named.

    Raises:
        LaunchError: the hub's configuration is none, or names what no hub may name.
        ConfigError: an override is none of LOCAL, or a file that only this machine can name is missing.
    """
    tree = _hubs_own(config)
    for key, value in _OUR_OWN.items():
        _set(tree, key, value)
    step = _step_of(tree)
    problems = [text for each in overrides if (text := _override(tree, each)) is not None]
    problems += _fit_step(tree, step)
    leaves, found = schema.read_tree(tree)
    named = {text.partition("=")[0] for text in overrides}
    ours = {key: value for key, value in leaves.items() if key not in DATA or key in named}
    problems += found + rules.broken(leaves) + files.missing_files(ours) + _unnamed(leaves, named, given)
    if problems:
        raise ConfigError(problems)
    return schema.assemble(leaves)


def check_slot(slot: Slot, ticket: str, spec: RunSpec) -> None:
    """Check that this is a place in the run of this configuration.

    Raises:
        LaunchError: it cannot be; the hub is broken, or no friend.
    """
    most = spec.topology.replicas + spec.topology.spare
    if slot.ticket != ticket:
        raise LaunchError("the hub has answered somebody else's question")
    if not 0 <= slot.replica < most:
        raise LaunchError(f"the hub gives the place of replica {slot.replica}; the run has 0 to {most - 1}")
    if not _RUN.fullmatch(slot.run):
        raise LaunchError(f"the hub calls the run {slot.run[:60]!r}, which is no run's name")
    if slot.exchange and not sideband_keys.is_certificate(slot.exchange):
        raise LaunchError("what the hub gives for its exchange's certificate is none")
    leaves, _ = schema.read_tree(bounded_yaml.load(slot.config))
    if slot.config_hash != config_hash(schema.assemble(leaves)):
        raise LaunchError("the hub's configuration is not the one that its hash belongs to")


def check_likeness(slot: Slot) -> None:
    """Check that this machine has the hub's version, before anything of it is used.

    Raises:
        LaunchError: it has another one.
    """
    if (reason := likeness.refusal(about(), slot.about)) is not None:
        raise LaunchError(f"this machine cannot join, because {reason}")


def check_data(slot: Slot, facts: Facts) -> None:
    """Check that this machine has prepared the hub's data, before any replica starts.

    Raises:
        LaunchError: it has other data; names the likely reason.
    """
    if not slot.data or facts.fingerprint == slot.data:
        return
    version = likeness.unlike(about(), slot.about, likeness.MAY)
    raise LaunchError(
        f"this machine's prepared data differ from the hub's ({facts.fingerprint[:12]}, not {slot.data[:12]}): "
        + (version or "another file, another revision on the hub, or another tokenizer?")
    )


def _step_of(tree: dict[str, Any]) -> int:
    return int(tree["train"]["micro_batch"]) * int(tree["train"]["accumulate"])


def _fit_step(tree: dict[str, Any], step: int) -> list[str]:
    """Keep the samples of a step where this machine takes them in micro-batches of its own; returns what is wrong."""
    train = tree["train"]
    size = train["micro_batch"]
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        return []  # said by the rules
    if step % size:
        near = ", ".join(str(each) for each in range(1, step + 1) if step % each == 0)
        return [f"train.micro_batch={size}: a step of this run has {step} samples; it must be one of {near}"]
    train["accumulate"] = step // size
    return []


def _hubs_own(config: str) -> dict[str, Any]:
    """Return the hub's configuration as a tree that is well-formed throughout."""
    try:
        tree = bounded_yaml.load(config)
    except BadYaml as error:
        raise LaunchError(f"the hub's configuration cannot be read: {error}") from error
    leaves, faults = schema.read_tree(tree)
    faults = faults or _absurd(leaves) or rules.broken(leaves)
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise LaunchError(f"this version of Tsugi does not take the hub's configuration: {faults[0][:300]}{more}")
    return dict(tree)


def _absurd(leaves: Leaves) -> list[str]:
    """Return faults for numbers that are too large for any run, and for our arithmetic."""
    numbers = {key: value for key, value in leaves.items() if isinstance(value, int | float)}
    found = [f"{key}: no run has {str(value)[:40]}" for key, value in numbers.items() if abs(value) > LARGEST]
    if leaves["topology.workers"] > MOST_WORKERS:
        found.append(f"topology.workers: a hub may ask for {MOST_WORKERS}, found {leaves['topology.workers']}")
    return found


def _unnamed(leaves: Leaves, named: set[str], given: bool) -> list[str]:
    """Return faults for files that the run needs and only this machine's user may name."""
    found, model = [], leaves.get("model.path")
    for key in () if given else DATA:
        path = leaves.get(key)
        if path and key not in named:
            found.append(f"{key}: the run's hub calls its file {path!r}; which one is it here? {key}=FILE")
    start = leaves.get("lora.from_adapter")
    if start is not None and "lora.from_adapter" not in named:
        ask = "which one is it here? lora.from_adapter=FOLDER"
        found.append(f"lora.from_adapter: the run's hub calls its adapter {start!r}; {ask}")
    elif start is not None and (text := adapters.problem(start)) is not None:
        found.append(f"lora.from_adapter: {text}")
    if leaves.get("model.source") == "gguf" and "model.path" not in named:
        found.append(f"model.path: the run's hub calls its file {model!r}; where is it here? model.path=FILE")
    if leaves.get("model.source") != "hf" or not isinstance(model, str) or "model.path" in named:
        return found
    if not _HUB_ID.fullmatch(model):
        found.append(f"model.path: the run's hub calls its folder {model!r}; where is it here? model.path=FOLDER")
    elif files.is_dir(model):
        found.append(f"model.path: {model} is also a folder here; if it is meant: model.path=./{model}")
    return found


def _override(tree: dict[str, Any], text: str) -> str | None:
    """Set one value; returns what is wrong with it, or None."""
    key, equals, value = text.partition("=")
    if key not in LOCAL or not equals:
        near = did_you_mean(key, list(LOCAL))
        return f"{text}: the run's settings come from its hub{near}; here can be set: {', '.join(LOCAL)}"
    try:
        _set(tree, key, bounded_yaml.load(value))
    except BadYaml as error:
        return f"{text}: {error}"
    return None


def _set(tree: dict[str, Any], key: str, value: Any) -> None:
    section, _, name = key.rpartition(".")
    (tree[section] if section else tree)[name] = value
