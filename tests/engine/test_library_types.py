"""A program whose author checks its types: `mypy --strict` finds nothing in it, and nothing in this package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import torch
from torch import nn

from tsugi_kpool import KPoolCallback, KPoolLoraConfig, PlesioHandle, TsugiError, plesio_init, plesio_shutdown


def train(model: nn.Module, config: KPoolLoraConfig) -> int:
    with plesio_init(model, config) as handle:
        optimizer = torch.optim.AdamW(model.parameters())
        optimizer.step()
        handle.count(3)
        means: dict[str, float] = handle.reduce({"loss": 2.0})
        print(means, handle.figures().tokens, handle.stopping)
        handle.wait(handle.version)
        return handle.version


def joined(model: nn.Module) -> PlesioHandle:
    config = KPoolLoraConfig(r=4, lora_alpha=8, n_adapters=4, k_active=2)
    try:
        return plesio_init(model, config)
    except TsugiError:
        plesio_shutdown(model)
        raise


pool = KPoolCallback(KPoolLoraConfig())
"""


@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_a_users_program_has_types(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    options = ["--strict", "--config-file=", f"--cache-dir={tmp_path / 'cache'}"]
    result = subprocess.run(
        [sys.executable, "-m", "mypy", *options, "program.py"],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
