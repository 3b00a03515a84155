"""The trained adapter as plain PEFT files with tokenizer, template and card: whole, verified, or not there."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from tsugi_cli.config.spec import RunSpec
from tsugi_kpool.durable import flush_all
from tsugi_kpool.errors import ExportError

from .card import card
from .model import model_path
from .start import NAME, plain

CARD = "README.md"
WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class Beside:
    """What lies beside the weights: whoever loads the folder needs nothing else but the base model."""

    tokenizer: Any
    card: str


@dataclass(frozen=True)
class Adapter:
    """What is written, and how."""

    tensors: dict[str, Any]
    """As they stand in its file."""
    save: Callable[[Path], None]


def export(model: Any, target: Path | None, beside: Beside | None = None, start: Path | None = None) -> None:
    """Write the adapter next to `target`, read it back, compare, and only then move it there.

    All workers of a replica call this, because they may have to put the adapter's shards together; with `target` None
    a worker does no more than that. What cannot be written there is put into the machine's temporary folder.

    Args:
        model: PEFT's.
        target: The adapter's folder.
        beside: What else lies there.
        start: The values that were taken out of the base weights when training began; the adapter is for whole ones.

    Raises:
        ExportError: it is not at `target`, and says where it is instead, or how much space it needs.
    """
    state = _whole_state(model)
    if target is None:
        return
    adapter = _adapter(model, state, start)
    try:
        _write(adapter, target, beside)
    except OSError as error:
        raise ExportError(_elsewhere(adapter, target, beside, error.strerror or str(error))) from error


def beside(spec: RunSpec, model: Any, tokenizer: Any, data_digest: str) -> Beside:
    """Tokenizer and card of a run's adapter.

    Args:
        spec: The run's.
        model: Base or wrapped model: its config may know the revision.
        tokenizer: With the chat template that it was trained with.
        data_digest: SHA-256 over all splits.
    """
    revision = getattr(model.config, "_commit_hash", None)
    return Beside(tokenizer, card(spec, str(model_path(spec.model)), revision, data_digest))


def _elsewhere(adapter: Adapter, target: Path, beside: Beside | None, reason: str) -> str:
    """A trained adapter is not lost to a full disk: put it somewhere else; what to tell about it."""
    needed = sum(value.numel() * value.element_size() for value in adapter.tensors.values())
    problem = f"cannot write the adapter to {target} ({reason}; it takes {needed / 1e6:.1f} MB)"
    try:
        place = Path(tempfile.mkdtemp(prefix=f"tsugi-{target.parent.name}-")) / target.name
        _write(adapter, place, beside)
    except (OSError, ExportError) as error:
        return f"{problem}, nor to {tempfile.gettempdir()}: {error}; make room and go on from a checkpoint"
    return f"{problem}; it is whole in {place}"


def _write(adapter: Adapter, target: Path, beside: Beside | None) -> None:
    """Write, compare, move.

    Raises:
        OSError: there is no room, or no disk.
        ExportError: what was written is not what was trained.
    """
    scratch = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    if not target.parent.is_dir():  # made again, it would lie below the place where its disk may be mounted again
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(target.parent))
    try:
        adapter.save(scratch)
        _verify(adapter, scratch)
        if beside is not None:
            beside.tokenizer.save_pretrained(scratch)
            (scratch / CARD).write_text(beside.card, encoding="utf-8")
        flush_all(scratch)
        shutil.rmtree(target, ignore_errors=True)
        scratch.rename(target)
    except SafetensorError as error:  # how a full disk looks from inside safetensors
        raise OSError(str(error)) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _whole_state(model: Any) -> dict[str, Any]:
    """The adapter's values by parameter, put together where they lie in shards."""
    from tsugi_kpool.engine.shards import whole

    trained = {name: whole(value.detach()) for name, value in model.named_parameters() if value.requires_grad}
    return {**model.state_dict(), **trained}


def _adapter(model: Any, state: dict[str, Any], start: Path | None) -> Adapter:
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file

    tensors = get_peft_model_state_dict(model, state_dict=state)
    if start is None:
        return Adapter(tensors, lambda folder: model.save_pretrained(folder, state_dict=state))
    config, tensors = plain(model.peft_config[NAME], tensors, load_file(start))
    return Adapter(tensors, partial(_save, config, tensors))


def _save(config: Any, tensors: dict[str, Any], folder: Path) -> None:
    """As PEFT does."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    save_file(
        {name: value.contiguous() for name, value in tensors.items()}, folder / WEIGHTS, metadata={"format": "pt"}
    )
    config.inference_mode = True
    config.save_pretrained(folder)


def _verify(adapter: Adapter, written: Path) -> None:
    import torch
    from safetensors.torch import load_file

    expected, found = adapter.tensors, load_file(written / WEIGHTS)
    if set(expected) != set(found):
        raise ExportError(f"{written} holds other tensors than the model: {set(expected) ^ set(found)}")
    wrong = [name for name, value in expected.items() if not torch.equal(value.cpu(), found[name])]
    if wrong:
        raise ExportError(f"{written}: {len(wrong)} tensors differ from the trained model, first {wrong[0]}")
