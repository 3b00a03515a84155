"""The trained adapter as plain PEFT files: whole, verified, or not there."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from tsugi_kpool.errors import ExportError


def export(model: Any, target: Path) -> None:
    """Write the adapter next to `target`, read it back, compare, and only then move it there.

    Raises:
        ExportError: it cannot be written, or what was written is not what was trained.
    """
    scratch = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        model.save_pretrained(scratch)
        _verify(model, scratch)
        shutil.rmtree(target, ignore_errors=True)
        scratch.rename(target)
    except OSError as error:
        raise ExportError(f"cannot write the adapter to {target}: {error.strerror or error}") from error


def _verify(model: Any, written: Path) -> None:
    import torch
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file

    expected = get_peft_model_state_dict(model)
    found = load_file(written / "adapter_model.safetensors")
    if set(expected) != set(found):
        raise ExportError(f"{written} holds other tensors than the model: {set(expected) ^ set(found)}")
    wrong = [name for name, value in expected.items() if not torch.equal(value.cpu(), found[name])]
    if wrong:
        raise ExportError(f"{written}: {len(wrong)} tensors differ from the trained model, first {wrong[0]}")
