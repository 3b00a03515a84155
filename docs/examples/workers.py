"""Two workers in each replica: one torchrun agent for each replica, DDP (or `fsdp2`) inside, the pool between.

export TSUGI_REPLICAS=2
for i in 0 1; do TSUGI_REPLICA=$i torchrun --rdzv-backend=tsugi --nproc-per-node 2 docs/examples/workers.py & done
"""

import hashlib
import json
import sys

import torch
import torch.distributed as dist
from peft import get_peft_model
from plain_loop import OUT, sentences, tiny_llama
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from tsugi_kpool import KPoolLoraConfig, init_process_group, plesio_init

INSIDE = sys.argv[2] if len(sys.argv) > 2 else "ddp"


def main() -> None:
    torch.set_num_threads(1)
    init_process_group("gloo")  # of this replica's workers alone
    config = KPoolLoraConfig(
        r=4, lora_alpha=8, target_modules="all-linear", n_adapters=4, k_active=2, sideband_addr="tcp://127.0.0.1:0"
    )
    model = get_peft_model(tiny_llama(), config)
    if INSIDE == "fsdp2":  # before plesio_init, which must see the shards
        for layer in model.get_base_model().model.layers:
            fully_shard(layer)
        forward = fully_shard(model)
    else:
        forward = DistributedDataParallel(model)
    with plesio_init(model, config, keys=OUT / "run.keys") as handle:
        optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
        for batch in sentences(240, seed=handle.replica).split(4):
            mine = batch[handle.worker :: handle.workers, : 24 - 6 * handle.worker]  # workers with unequal tokens
            loss = forward(input_ids=mine, labels=mine).loss
            (loss * handle.weight(mine[:, 1:].numel())).backward()
            optimizer.step()
            optimizer.zero_grad()
    trained = {name: values.detach() for name, values in model.named_parameters() if values.requires_grad}
    if INSIDE == "fsdp2":
        trained = {name: shard.full_tensor() for name, shard in trained.items()}
    if handle.replica == handle.worker == 0:
        model.save_pretrained(OUT / "adapter", state_dict=trained)
    digest = hashlib.sha256(b"".join(value.numpy().tobytes() for value in trained.values())).hexdigest()
    facts = {"loss": float(loss.detach()), "rounds": handle.version, "digest": digest}
    (OUT / f"replica{handle.replica}.{handle.worker}.json").write_text(json.dumps(facts))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
