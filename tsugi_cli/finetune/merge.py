"""A state of a run as files for others: the adapter's folder, or one whole model that is verified by its logits."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from tsugi_kpool.checkpoints import read_manifest
from tsugi_kpool.durable import flush_all, flush_folder
from tsugi_kpool.errors import ConfigError, ExportError
from tsugi_kpool.foreign import read_plain

from .export import CARD, beside, export
from .recover import at_checkpoint
from .trained import Trained, load_trained

TOLERANCE = 1e-4
"""Of a logit, times the largest one: merging adds the same numbers in another order."""
PROBE_TOKENS = 32


def export_adapter(trained: Trained, target: Path) -> None:
    """The adapter's folder in a place of its own.

    Raises:
        ConfigError: something is there already.
        TsugiError: the model cannot be had, or the disk takes no adapter.
    """
    _refuse_existing(target)
    if trained.checkpoint is None:
        _moved_in(target, lambda scratch: shutil.copytree(trained.paths.adapter, scratch))
        return
    from .model import load, on_cpu

    base, tokenizer = load(on_cpu(trained.spec.model))
    model = at_checkpoint(base, trained.spec, trained.paths, trained.checkpoint)
    digest = read_manifest(trained.checkpoint).fingerprint
    target.parent.mkdir(parents=True, exist_ok=True)
    export(model, target, beside(trained.spec, model, tokenizer, digest))


def export_merged(trained: Trained, target: Path) -> float:
    """One model without PEFT; returns the largest difference of a logit, as a share of the largest logit.

    Raises:
        ConfigError: something is there already.
        ExportError: what was written does not say what was trained, or could not be written.
    """
    _refuse_existing(target)
    model, tokenizer = load_trained(trained)
    before = logits(model)
    whole = model.merge_and_unload()
    found: list[float] = []

    def write(scratch: Path) -> None:
        _save(whole, tokenizer, scratch)
        if trained.checkpoint is None and trained.paths.card.exists():
            (scratch / CARD).write_bytes(read_plain(trained.paths.card))
        found.append(_verified(_loaded(scratch, whole.dtype), before, whole.dtype))

    _moved_in(target, write)
    return found[0]


def export_gguf(trained: Trained, target: Path) -> float:
    """One GGUF file; returns what `export_merged` does, of the model that was read back from it.

    Raises:
        ConfigError: something is there already, or a model of this kind is not written here.
        ExportError: what was written does not say what was trained, or could not be written.
        EnvironmentError_: a package is missing.
    """
    from . import gguf

    _refuse_existing(target)
    model, tokenizer = load_trained(trained)
    before = logits(model)
    whole = model.merge_and_unload()
    found: list[float] = []

    def write(scratch: Path) -> None:
        with tempfile.TemporaryDirectory() as folder, gguf.original_of(trained.spec.model) as original:
            _save(whole, tokenizer, Path(folder))
            gguf.write(gguf.Source(whole, tokenizer, Path(folder), original), scratch)
        found.append(_verified(gguf.read_back(scratch, tokenizer, whole.dtype), before, whole.dtype))

    _moved_in(target, write)
    return found[0]


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _loaded(folder: Path, dtype: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def logits(model: Any) -> Any:
    """Of a fixed row of token ids, float32 [PROBE_TOKENS, vocabulary]."""
    import torch

    ids = torch.arange(PROBE_TOKENS).mul(7919).remainder(model.config.vocab_size)[None]
    with torch.inference_mode():
        return model(input_ids=ids).logits[0].float()


def difference(found: Any, wanted: Any) -> float:
    """The largest difference of two tensors of logits, as a share of the largest wanted one."""
    return float((found - wanted).abs().max() / wanted.abs().max())


def _verified(model: Any, wanted: Any, dtype: Any) -> float:
    import torch

    off = difference(logits(model.eval()), wanted)
    allowed = TOLERANCE if dtype == torch.float32 else float(torch.finfo(dtype).eps) * 8
    if not off <= allowed:
        raise ExportError(f"the written model's logits are {off:.1e} off those of base and adapter: not written")
    return off


def _refuse_existing(target: Path) -> None:
    if target.exists():
        raise ConfigError([f"{target} is there already; --out FOLDER names another place"])


def _moved_in(target: Path, write: Any) -> None:
    """Whole or not there: a folder or a file."""
    scratch = target.with_name(f".{target.name}.tmp")
    _gone(scratch)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write(scratch)
        flush_all(scratch) if scratch.is_dir() else flush_folder(scratch)
        scratch.rename(target)
    except OSError as error:
        raise ExportError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        _gone(scratch)


def _gone(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
