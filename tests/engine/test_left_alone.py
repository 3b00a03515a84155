"""The hub never returns: a joiner leaves the fleet's anchors as an adapter, and everybody says what is kept."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from tests.support import kpool, tiny_lora
from tsugi_cli.finetune.export import export
from tsugi_cli.finetune.left_alone import kept_when_left_alone
from tsugi_cli.record.run_dir import RunPaths
from tsugi_kpool.engine.engine import KPoolEngine
from tsugi_kpool.errors import SidebandError


def left_alone(root: Path, version: int, joiner: bool = True, workers: int = 1) -> tuple[str, RunPaths, KPoolEngine]:
    """What the error says of a replica whose own steps have led its live parameters away from the anchors."""
    paths, settings = RunPaths(root), kpool()
    if joiner:
        paths.slot.parent.mkdir(exist_ok=True)
        paths.slot.write_text("{}")
    model = tiny_lora(settings)
    engine = KPoolEngine(model, settings, 1)
    engine.inside = SimpleNamespace(workers=workers)
    engine._boundary = SimpleNamespace(aggregator=SimpleNamespace(version=version))
    with torch.no_grad():
        for values in engine.trainable():
            values.add_(1.0)
    write = partial(export, model, paths.adapter)
    with pytest.raises(SidebandError) as found, kept_when_left_alone(engine, paths, write):
        raise SidebandError("the hub at tcp://h:1 has been silent for 5 s")
    assert str(found.value).startswith("the hub at tcp://h:1 has been silent for 5 s; ")
    return str(found.value), paths, engine


@pytest.mark.parametrize("workers", [1, 8])
def test_a_joiner_keeps_the_anchors_as_an_adapter(tmp_path, workers):
    told, paths, engine = left_alone(tmp_path, version=3, workers=workers)
    assert told.endswith(f"(version 3): {paths.adapter}")
    anchors = engine.buffer.update.anchor
    written = load_file(paths.adapter / "adapter_model.safetensors")
    assert torch.equal(engine.pool.read(range(engine.pool.n)), anchors), "own steps that nobody has are left out"
    assert sum(each.numel() for each in written.values()) == anchors.numel()
    total = sum(float(each.double().sum()) for each in written.values())
    assert total == pytest.approx(float(anchors.double().sum()))


def test_one_that_waits_in_vain_to_join_again_still_has_it(tmp_path):
    left_alone(tmp_path, version=3)
    told, paths, _ = left_alone(tmp_path, version=0)
    assert told.endswith(f": {paths.adapter}")
    assert (paths.adapter / "adapter_model.safetensors").exists()


def test_without_a_round_there_is_nothing_to_keep(tmp_path):
    told, paths, _ = left_alone(tmp_path, version=0)
    assert "there is no adapter" in told
    assert not paths.adapter.exists()


def test_on_the_hubs_machine_the_checkpoints_are_what_is_kept(tmp_path):
    told, paths, _ = left_alone(tmp_path, version=3, joiner=False)
    assert "no checkpoint was written: nothing is kept" in told
    assert not paths.adapter.exists()
