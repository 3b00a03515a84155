"""tsugi-kpool 0.1.3, the published package of this idea, under DDP, with the optimizer that its loop lacks.

Four adapters of rank 2, two of them active in a step. All adapters are made trainable before DDP looks at the model:
in the order of its README, DDP sees the first one only, and the others are never averaged.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import workload
from peft import LoraConfig, get_peft_model
from torch.nn.parallel import DistributedDataParallel

from tsugi_kpool import KPoolLoraConfig, apply_kpool_step, plesio_init, post_backward_step, pre_forward_step

N, K = 4, 2


def train(run: workload.Run) -> None:
    _train(run, {})


def fires(run: workload.Run) -> None:
    """Its threshold so high that it never holds: at the default one it may hold at every step and train nothing."""
    _train(run, {"buffer_convergence_eps": 1e9})


def _train(run: workload.Run, settings: dict[str, float]) -> None:
    dist.init_process_group("gloo")
    torch.manual_seed(run.job.seed)
    rank, alpha = workload.RANK // N, workload.ALPHA // N
    one = LoraConfig(r=rank, lora_alpha=alpha, target_modules=workload.TARGETS)
    model = get_peft_model(workload.load(run.base), one, adapter_name="adapter_0")
    for number in range(1, N):
        model.add_adapter(f"adapter_{number}", one)
    pool = [parameter for name, parameter in model.named_parameters() if "lora_" in name]
    for parameter in pool:
        parameter.requires_grad_(True)
    config = KPoolLoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=tuple(workload.TARGETS),
        n_adapters=N,
        k_active=K,
        aggregation_mode="buffer_convergence",
        **settings,
    )
    forward = DistributedDataParallel(model, find_unused_parameters=True)
    plesio_init(forward, config)
    optimizer = torch.optim.AdamW(pool, lr=run.lr)
    step = 0

    def gated(**inputs: torch.Tensor) -> object:
        nonlocal active
        active = apply_kpool_step(forward, step=step)
        with pre_forward_step(forward, step=step, active=active):
            return forward(**inputs)

    active: tuple[int, ...] = ()
    # Scored with all adapters that were trained, not with the two that happen to be active at the end.
    everything = [f"adapter_{number}" for number in range(N)]
    for loss in run.losses(gated, model, lambda: model.base_model.set_adapter(everything)):
        loss.backward()
        decisions = post_backward_step(forward, step=step, active=active)
        fired = sum(bool(getattr(each, "fired", False)) for each in decisions)
        run.notes["fired"] = run.notes.get("fired", 0) + fired
        optimizer.step()
        optimizer.zero_grad()
        step += 1
