"""The pool with accelerate.

torchrun --rdzv-backend=tsugi --nproc-per-node 2 docs/examples/accelerate_loop.py [OUT]
"""

import hashlib
import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from peft import get_peft_model, get_peft_model_state_dict
from plain_loop import sentences, tiny_llama
from torch.utils.data import DataLoader

from tsugi_kpool import KPoolLoraConfig, plesio_init, plesio_shutdown

OUT = Path(sys.argv[1] if len(sys.argv) > 1 else "example-out")


def main() -> None:
    torch.set_num_threads(1)
    config = KPoolLoraConfig(
        r=4, lora_alpha=8, target_modules="all-linear", n_adapters=4, k_active=2, sideband_addr="tcp://127.0.0.1:0"
    )
    model = get_peft_model(tiny_llama(), config)
    handle = plesio_init(model, config)  # before the Accelerator, which then takes this process for a whole job
    accelerator = Accelerator(gradient_accumulation_steps=2, mixed_precision="bf16")
    trained = (p for p in model.parameters() if p.requires_grad)
    model, optimizer, loader = accelerator.prepare(
        model, torch.optim.AdamW(trained, lr=1e-2), DataLoader(sentences(240, seed=handle.replica), batch_size=4)
    )
    for batch in loader:
        with accelerator.accumulate(model):
            loss = model(input_ids=batch, labels=batch).loss
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    model = accelerator.unwrap_model(model)
    plesio_shutdown(model)  # waits for the last round: every replica holds the same adapter then
    if handle.replica == 0:  # not accelerator.is_main_process, which is true everywhere
        model.save_pretrained(OUT / "adapter")
    values = b"".join(value.cpu().numpy().tobytes() for value in get_peft_model_state_dict(model).values())
    facts = {"loss": float(loss.detach()), "rounds": handle.version, "digest": hashlib.sha256(values).hexdigest()}
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / f"replica{handle.replica}.json").write_text(json.dumps(facts))
    print(f"replica {handle.replica}: loss {facts['loss']:.3f} after {handle.version} rounds")


if __name__ == "__main__":
    main()
