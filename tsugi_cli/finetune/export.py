"""The trained adapter as plain PEFT files: whole, verified, or not there."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from tsugi_kpool.errors import ExportError


def export(model: Any, target: Path | None) -> None:
    """Write the adapter next to `target`, read it back, compare, and only then move it there.

    All workers of a replica call this, because they may have to put the adapter's shards together; with `target` None
    a worker does no more than that.

    Raises:
        ExportError: it cannot be written, or what was written is not what was trained.
    """
    state = _whole_state(model)
    if target is None:
        return
    scratch = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        model.save_pretrained(scratch, state_dict=state)
        _verify(model, scratch, state)
        shutil.rmtree(target, ignore_errors=True)
        scratch.rename(target)
    except OSError as error:
        raise ExportError(f"cannot write the adapter to {target}: {error.strerror or error}") from error


def _whole_state(model: Any) -> dict[str, Any]:
    """The adapter's values by parameter, put together where they lie in shards."""
    from tsugi_kpool.engine.shards import whole

    trained = {name: whole(value.detach()) for name, value in model.named_parameters() if value.requires_grad}
    return {**model.state_dict(), **trained}


def _verify(model: Any, written: Path, state: dict[str, Any]) -> None:
    import torch
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file

    expected = get_peft_model_state_dict(model, state_dict=state)
    found = load_file(written / "adapter_model.safetensors")
    if set(expected) != set(found):
        raise ExportError(f"{written} holds other tensors than the model: {set(expected) ^ set(found)}")
    wrong = [name for name, value in expected.items() if not torch.equal(value.cpu(), found[name])]
    if wrong:
        raise ExportError(f"{written}: {len(wrong)} tensors differ from the trained model, first {wrong[0]}")
