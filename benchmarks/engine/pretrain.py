"""A small model that knows something, for studies whose arms take seconds: the tiny Llama, trained on Python sources.

    python benchmarks/engine/pretrain.py

All of its weights are trained, on bytes of the standard library of the Python that runs. A LoRA on the random weights
of `model=tiny` can learn next to nothing; on these its eval loss falls from 3 to 1 within a few hundred samples.
"""

from __future__ import annotations

import random
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

import platformdirs
import torch
from filelock import FileLock

from tsugi_cli.config.compose import compose
from tsugi_cli.finetune.model import load

LENGTH, BATCH, STEPS, LR = 160, 16, 600, 4e-3
MEGABYTES = 4
PLACE = Path(platformdirs.user_cache_dir("tsugi")) / "benchmarks" / "tiny-pretrained-v1"


def overrides(model: str) -> tuple[str, ...]:
    """Those that choose this model; `pretrained` is made when it is not there yet (40 s of processor time)."""
    return (f"model={model}",) if model != "pretrained" else ("model=hf", f"model.path={ensure()}")


def ensure() -> Path:
    """The folder of the model."""
    PLACE.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{PLACE}.lock"):
        if not PLACE.exists():
            model, tokenizer = load(compose(["recipe=smollm2_tools", "model=tiny"]).model)
            print(f"{PLACE}: {train(model, tokenizer):.3f} nats a byte", flush=True)
            scratch = Path(tempfile.mkdtemp(dir=PLACE.parent))
            model.save_pretrained(scratch)
            tokenizer.save_pretrained(scratch)
            scratch.rename(PLACE)
    return PLACE


def train(model: Any, tokenizer: Any) -> float:
    """Loss of the last batch."""
    torch.manual_seed(0)
    ids = torch.tensor(tokenizer(corpus(), add_special_tokens=False)["input_ids"])
    draw, loss = random.Random(0), torch.tensor(0.0)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=LR, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, STEPS, pct_start=0.05)
    for _ in range(STEPS):
        starts = [draw.randrange(len(ids) - LENGTH) for _ in range(BATCH)]
        batch = torch.stack([ids[start : start + LENGTH] for start in starts])
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return float(loss.detach())


def corpus() -> str:
    """Python sources, in the order of their names."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    return "".join(file.read_text(encoding="utf-8", errors="ignore") for file in files)[: MEGABYTES * 1_000_000]


if __name__ == "__main__":
    ensure()
