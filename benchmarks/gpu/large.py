"""Training steps of one model as `tsugi finetune` builds it: speed, and peak memory against a dry run's estimate.

    python benchmarks/gpu/large.py MODEL_FOLDER --quantize 4bit --out FIGURES.json

The base is in bf16 or quantised, activations are computed again, the LoRA's pool is cut and shipped from once. On a
CPU memory is that of the tensors; a GPU counts its peak itself.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from tsugi_cli.config.compose import compose
from tsugi_cli.config.spec import RunSpec
from tsugi_cli.finetune.assembled import assembled
from tsugi_cli.finetune.model import quieten
from tsugi_cli.finetune.objectives import supervised_loss
from tsugi_cli.finetune.optimizers import optimizer_factory
from tsugi_cli.finetune.tokens import Batch
from tsugi_cli.launch.estimate import FP32, OPTIMIZER_COPIES, pool_bytes, shapes, sizes_of
from tsugi_cli.record.run_dir import RunPaths
from tsugi_kpool.engine.buffer import ElasticBuffer
from tsugi_kpool.engine.inside import ALONE
from tsugi_kpool.engine.local import LocalUpdate
from tsugi_kpool.engine.pool import AdapterPool


def setting(arguments: argparse.Namespace) -> RunSpec:
    return compose(
        [
            "recipe=llama3_8b_lora",
            f"model={arguments.model}",
            "model.dtype=bfloat16",
            f"model.quantize={arguments.quantize}",
            "model.gradient_checkpointing=true",
            f"topology.device={arguments.device}",
            "topology.workers=1",
            "topology.inside=ddp",
            "data=tools",
        ]
    )


def batch_of(rows: int, length: int, words: int, device: torch.device) -> Batch:
    """Random tokens, all of them supervised."""
    ids = torch.randint(3, words, (rows, length), generator=torch.Generator().manual_seed(0)).to(device)
    return Batch(ids=ids, mask=torch.ones_like(ids), labels=ids, tokens=rows * length, samples=rows)


def trained(spec: RunSpec, arguments: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Seconds of each step, the losses, and the memory at the end."""
    with tempfile.TemporaryDirectory() as scratch:
        model, forward, _ = assembled(spec, RunPaths(Path(scratch)), ALONE, device)
    pool = AdapterPool(model, spec.kpool.n)
    buffer = ElasticBuffer(LocalUpdate(pool))
    optimizer = optimizer_factory(spec.train)(pool.parameters())
    batch = batch_of(arguments.rows, arguments.length, model.config.vocab_size, device)
    seconds, losses = [], []
    for _ in range(arguments.steps):
        started_s = time.perf_counter()
        buffer.open_step()
        loss = supervised_loss(forward, batch)
        loss.backward()
        optimizer.step()
        buffer.close_step(tokens=batch.tokens, lr=spec.train.lr)
        held = _held(device)
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))
        seconds.append(time.perf_counter() - started_s)
    shipped = buffer.contribution(list(range(spec.kpool.k if isinstance(spec.kpool.k, int) else 1)))
    if not all(torch.isfinite(torch.tensor(losses))) or not bool(shipped.delta.isfinite().all()):
        raise SystemExit(f"not finite: losses {losses}")
    return {
        "losses": losses,
        "step_s": seconds,
        "tokens_per_s": batch.tokens / min(seconds[1:]),
        "held_bytes": held,
        "peak_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
        "dtypes": sorted({str(each.dtype) for each in model.parameters()}),
    }


def _held(device: torch.device) -> int:
    """Bytes between two steps, gradients included: what stays when all activations are gone."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return torch.cuda.memory_allocated(device)
    gc.collect()
    tensors = [each for each in gc.get_objects() if isinstance(each, torch.Tensor)]
    with_gradients = [*tensors, *(each.grad for each in tensors if each.is_leaf and each.grad is not None)]
    own = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in with_gradients}
    return sum(own.values())


def estimated(spec: RunSpec, folder: Path) -> dict[str, int]:
    """What a dry run says, and the part of it that lies on the device whatever the pool keeps elsewhere."""
    sizes = sizes_of(shapes(folder), spec)
    if sizes is None:
        raise SystemExit(f"{folder}: the files say nothing of sizes")
    trained_bytes = sizes.trained * FP32 * (2 + OPTIMIZER_COPIES)
    return {
        "dry_run_bytes": sizes.base_bytes + pool_bytes(spec, sizes.trained),
        "without_pool_bytes": sizes.base_bytes + trained_bytes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--quantize", default="none", choices=("none", "4bit", "8bit"))
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    quieten()
    spec = setting(arguments)
    figures = {**trained(spec, arguments, torch.device(arguments.device)), **estimated(spec, arguments.model)}
    if figures["peak_bytes"] is not None:
        figures["peak_over_dry_run"] = figures["peak_bytes"] / figures["dry_run_bytes"]
    figures["held_over_dry_run"] = figures["held_bytes"] / figures["dry_run_bytes"]
    arguments.out.write_text(json.dumps(figures), encoding="utf-8")


if __name__ == "__main__":
    main()
