"""`tsugi finetune resume=last|DIR`: which checkpoint, which settings, and what is trained again.

The run continues in a new directory with the old settings and the user's changes. A change that would make it another
training is refused by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from tsugi_cli.config import files
from tsugi_cli.config import overrides as typed
from tsugi_cli.config.compose import compose, read_earlier, to_tree
from tsugi_cli.config.schema import did_you_mean
from tsugi_cli.config.spec import RunSpec
from tsugi_cli.record.atomic import write_json
from tsugi_cli.record.records import Tail
from tsugi_cli.record.resumed import Resumed, resumed_of
from tsugi_cli.record.run_dir import RunPaths, find_run
from tsugi_cli.record.run_lock import holder
from tsugi_kpool.checkpoints import Found, Store, verified
from tsugi_kpool.core.checkpoint import BadCheckpoint, encode, length, version_of
from tsugi_kpool.core.events import Name
from tsugi_kpool.errors import ConfigError, DataError, MachineError, TsugiError
from tsugi_kpool.sideband import keys as sideband_keys
from tsugi_kpool.sideband.observer import ask_status

KEY = "resume="
LAST = "last"
FIXED = (
    "seed", "model.source", "model.path", "model.package", "model.file", "model.dtype", "model.revision",
    "model.quantize", "data.builder", "data.seed", "data.n_train", "data.n_eval", "data.n_test", "data.max_tokens",
    "data.packing", "data.group_by_length", "kpool.n", "kpool.mode", "lora.rank", "lora.alpha", "lora.target_modules",
    "lora.exclude_modules", "lora.target_parameters", "lora.modules_to_save", "lora.layers", "lora.rslora",
    "lora.dora", "lora.init", "train.objective", "train.dpo.beta", "train.dpo.loss_type", "train.dpo.label_smoothing",
)  # fmt: skip
"""Settings that must stay, or it would be another training. Whether data.path holds the same data, its hash says."""
ALIVE_S = 1.0
"""Timeout of the question whether a hub is there."""


def asked(overrides: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return the value of `resume=`, and the other words."""
    found = [each.removeprefix(KEY) for each in overrides if each.startswith(KEY)]
    return (found[-1] if found else None), [each for each in overrides if not each.startswith(KEY)]


def resume(text: str, overrides: Sequence[str]) -> tuple[RunSpec, Resumed]:
    """Return the run's settings, and what it resumes.

    Raises:
        ConfigError: there is nothing to resume, or a setting would make it another training.
    """
    paths, wanted = _place(text, overrides)
    before, lacking = _settings(paths)
    _refuse_running(paths)
    found = _found(paths, wanted)
    if found.newest is None:
        raise ConfigError([_nothing(text, paths, found)])
    spec = _composed(paths, before, overrides)
    manifest = found.newest.manifest
    repeats = max(manifest.repeats, _trained(paths) - manifest.samples)
    return spec, Resumed(paths.root, found.newest.path.name, manifest, repeats, found.skipped, tuple(lacking))


def settings_of(text: str, overrides: Sequence[str]) -> RunSpec:
    """Return the settings with which the run would go on, without looking for its checkpoint: for whoever joins it.

    Raises:
        ConfigError: there is no such run, or a setting would make it another training.
    """
    paths, _ = _place(text, overrides)
    before, _ = _settings(paths)
    return _composed(paths, before, overrides)


def fitted(resumed: Resumed, fingerprint: str | None, total: int) -> Resumed:
    """Return the same for a run over `total` positions of this data, which may be fewer or more than before.

    Args:
        resumed: As the earlier run left it.
        fingerprint: Of the data; None: it is not known yet.
        total: Samples of the whole run.

    Raises:
        DataError: the same positions would not mean the same samples.
        ConfigError: nothing is left to train on.
    """
    manifest = resumed.manifest
    if fingerprint is not None and fingerprint != manifest.fingerprint:
        raise DataError(
            f"{resumed.parent} was trained on other data (hash {manifest.fingerprint[:12]}, "
            f"found {fingerprint[:12]}): a resumed run needs the same"
        )
    done = tuple((start, min(stop, total)) for start, stop in manifest.done if start < total)
    if length(done) == total:
        trained = f"{resumed.parent} has trained on {length(manifest.done)} samples, and this run would have {total}"
        raise ConfigError([f"{trained}: nothing is left; raise train.epochs, or train.max_steps where it is set"])
    kept = msgspec.structs.replace(manifest, done=done, samples_total=total)
    return replace(resumed, manifest=kept, beyond=length(manifest.done) - length(done))


def adopt(resumed: Resumed, paths: RunPaths) -> None:
    """Copy the checkpoint into the new run's directory, which from then on does not need the old one.

    Raises:
        MachineError: the disk is full or cannot be written, or the checkpoint has gone meanwhile.
    """
    source = RunPaths(resumed.parent).checkpoints / resumed.checkpoint
    facts = {"parent": str(resumed.parent), "checkpoint": resumed.checkpoint, "repeats": resumed.repeats}
    try:
        adopted = Store(paths.checkpoints).adopt(source)
        if adopted.manifest.files != resumed.manifest.files:
            raise BadCheckpoint("it has become another one meanwhile")
        write_json(paths.resumed, facts | {"manifest": encode(resumed.manifest).decode()})
    except (OSError, BadCheckpoint) as error:
        raise MachineError(f"cannot take over {source}: {error}") from error


def _place(text: str, overrides: Sequence[str]) -> tuple[RunPaths, str | None]:
    """Return the run directory that is meant, and the checkpoint if one is named."""
    if text == LAST:
        runs = [each.removeprefix("runs_dir=") for each in overrides if each.startswith("runs_dir=")]
        paths = find_run(Path(runs[-1]) / "latest" if runs else None)
        if paths is None or not paths.root.exists():
            raise ConfigError(["resume=last: there is no run here; name its directory, resume=runs/..."])
        return paths, None
    if not text.strip():
        raise ConfigError(
            ["resume= is empty: write resume=last for the newest run here, or its directory, resume=runs/..."]
        )
    if not files.is_dir(text):
        said = files.no_such(text, "run directory")
        raise ConfigError([f"resume: {said}{'' if 'did you mean' in said else did_you_mean(text, [LAST])}"])
    path = Path(text).expanduser().resolve()
    if version_of(path.name) is not None and path.parent.name == "checkpoints":
        return RunPaths(path.parent.parent), path.name
    return RunPaths(path.parent if path.name == "checkpoints" else path), None


def _settings(paths: RunPaths) -> tuple[RunSpec, list[str]]:
    if not paths.config.exists():
        raise ConfigError([f"resume: {paths.root} is no run directory, it has no config.yaml{_other(paths)}"])
    try:
        return read_earlier(paths)
    except ConfigError as error:
        raise ConfigError(
            [f"resume: {paths.config} is none of this version of Tsugi: {problem}" for problem in error.problems]
        ) from error


def _found(paths: RunPaths, wanted: str | None) -> Found:
    if wanted is None:
        return Store(paths.checkpoints).newest()
    try:
        return Found(verified(paths.checkpoints / wanted), ())
    except BadCheckpoint as error:
        return Found(None, ((wanted, str(error)),))


def _nothing(text: str, paths: RunPaths, found: Found) -> str:
    if found.skipped:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in found.skipped)
        return f"resume={text}: no checkpoint of {paths.root} is whole ({reasons})"
    return f"resume={text}: {paths.root} has no checkpoint{_other(paths)}"


def _other(paths: RunPaths) -> str:
    """Return a hint to the newest other run with a checkpoint."""
    try:
        roots = sorted(paths.root.parent.iterdir(), reverse=True)
    except OSError:
        return ""
    for root in roots:
        other = RunPaths(root)
        known = root.is_dir() and not root.is_symlink() and other.config.exists()
        if known and Store(other.checkpoints).newest().newest:
            return f"; {root} has one: resume={root}"
    return ""


def _refuse_running(paths: RunPaths) -> None:
    """Refuse to resume a run that is still going: two runs from one would train the same data twice.

    A frozen launcher answers nothing but holds the lock. On a disk without locks the hub may answer.
    """
    held = holder(paths)
    if held is not None:
        raise ConfigError(
            [f"resume: {paths.root} is still running: {held} has it; Ctrl-C there ends it in good order"]
        )
    if paths.summary.exists() or not paths.keys.exists():
        return
    try:
        ask_status(sideband_keys.load(paths.keys), ALIVE_S)
    except TsugiError:
        return
    raise ConfigError([f"resume: {paths.root} is still running (tsugi sideband status --run {paths.root})"])


def _composed(paths: RunPaths, before: RunSpec, overrides: Sequence[str]) -> RunSpec:
    whole = [each for each in overrides if each.startswith("recipe=")]
    request = typed.read(overrides)
    # A path, such as data=FILE.jsonl, is one setting; the name of a file of conf/ would be lost below the old ones.
    whole += [f"{group}={name}" for group, name in request.choices.items() if f"{group}.path" not in request.values]
    if whole:
        kept = f"a resumed run has the settings of {paths.root}; change single ones, such as topology.replicas=3"
        raise ConfigError([f"{each}: {kept}" for each in whole])
    single = [word for word in overrides if word.partition("=")[0] not in request.choices]
    named = [f"{group}.path={request.values[f'{group}.path']}" for group in request.choices]
    # The checkpoint holds what has become of the adapter that the run began with.
    spec = compose([f"recipe={paths.config}", "lora.from_adapter=null", *single, *named], resumes=True)
    old, new = to_tree(before), to_tree(spec)
    problems = [
        f"{key}={_shown(_leaf(new, key))}: {paths.root} was trained with {_shown(_leaf(old, key))}, and "
        "another value would make it another training"
        for key in FIXED
        if _leaf(new, key) != _leaf(old, key) and not _moved(key, _leaf(old, key), _leaf(new, key))
    ]
    if problems:
        raise ConfigError(problems)
    return spec


def _moved(key: str, old: Any, new: Any) -> bool:
    """Return whether a model's directory is at another place on this machine."""
    return key == "model.path" and bool(old) and not files.is_dir(str(old)) and files.is_dir(str(new))


def _leaf(tree: dict[str, Any], key: str) -> Any:
    for name in key.split("."):
        tree = tree[name]
    return tree


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)


def _trained(paths: RunPaths) -> int:
    """Return the samples that a run has trained on, each counted once, from its metrics and events; 0 without
    them."""
    newest: dict[int, int] = {}
    total = 0
    for record in Tail(paths.metrics).read():
        replica, samples = record.get("replica"), record.get("samples")
        if isinstance(replica, int) and isinstance(samples, int):
            before = newest.get(replica, 0)
            total += samples - before if samples >= before else samples  # a replica that was started anew counts anew
            newest[replica] = samples
    for record in Tail(paths.events).read():
        again = record.get("again")
        total -= again if record.get("event") == Name.LEFT and isinstance(again, int) else 0
    earlier = resumed_of(paths)
    return total + (earlier.manifest.samples if earlier else 0)
