"""A run's trained model again: which of its states is meant, and the model with it. Torch comes late."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsugi_cli.config.compose import read_earlier
from tsugi_cli.config.schema import did_you_mean
from tsugi_cli.config.spec import RunSpec
from tsugi_cli.record.meant import meant
from tsugi_cli.record.run_dir import RunPaths
from tsugi_kpool.checkpoints import Store, verified
from tsugi_kpool.core.checkpoint import BadCheckpoint, version_of
from tsugi_kpool.errors import ConfigError


@dataclass(frozen=True)
class Trained:
    """A state of a run: its final adapter, or a checkpoint that verifies."""

    paths: RunPaths
    spec: RunSpec
    checkpoint: Path | None
    """None: the final adapter."""

    @property
    def name(self) -> str:
        """What a user calls it."""
        return self.checkpoint.name if self.checkpoint else "adapter"


def find(run: Path | None, checkpoint: str | None) -> Trained:
    """What a user means: the checkpoint that is named, else the final adapter, else the newest checkpoint.

    Raises:
        ConfigError: there is no such run, or it has nothing of that name.
        LaunchError: its configuration was changed.
    """
    paths = meant(run)
    if not paths.config.is_file():
        raise ConfigError([f"{paths.root} is no run directory of `tsugi finetune`: it has no config.yaml"])
    spec, _ = read_earlier(paths)
    if checkpoint is not None:
        return Trained(paths, spec, _named(paths, checkpoint))
    if (paths.adapter / "adapter_config.json").is_file():
        return Trained(paths, spec, None)
    newest = Store(paths.checkpoints).newest().newest
    if newest is None:
        raise ConfigError([f"{paths.root} has neither an adapter nor a checkpoint: nothing of it was kept"])
    return Trained(paths, spec, newest.path)


def _named(paths: RunPaths, name: str) -> Path:
    known = [path.name for path in paths.checkpoints.glob("v*") if version_of(path.name) is not None]
    if name not in known:
        there = ", ".join(sorted(known)) or "none"
        raise ConfigError([f"--checkpoint {name}: no such checkpoint{did_you_mean(name, known)} (there: {there})"])
    try:
        return verified(paths.checkpoints / name).path
    except BadCheckpoint as error:
        raise ConfigError([f"--checkpoint {name}: {error}"]) from error


def load_trained(trained: Trained) -> tuple[Any, Any]:
    """The PEFT model (evaluation mode) and its tokenizer.

    Raises:
        TsugiError: the base model cannot be had, or the adapter is none of it.
    """
    from .model import load, on_cpu

    base, tokenizer = load(on_cpu(trained.spec.model))
    return _wrapped(base, trained).eval(), tokenizer


def _wrapped(base: Any, trained: Trained) -> Any:
    if trained.checkpoint is not None:
        from .recover import at_checkpoint

        return at_checkpoint(base, trained.spec, trained.paths, trained.checkpoint)
    from peft import PeftModel
    from safetensors import SafetensorError

    try:
        return PeftModel.from_pretrained(base, trained.paths.adapter)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError([f"{trained.paths.adapter} cannot be loaded: {reason}"]) from error
