"""The pool with transformers.Trainer.

torchrun --rdzv-backend=tsugi --nproc-per-node 2 docs/examples/trainer.py [OUT]
"""

import hashlib
import json
import sys
from pathlib import Path

import torch
from peft import get_peft_model, get_peft_model_state_dict
from plain_loop import sentences, tiny_llama
from transformers import Trainer, TrainingArguments

from tsugi_kpool import KPoolCallback, KPoolLoraConfig

OUT = Path(sys.argv[1] if len(sys.argv) > 1 else "example-out")


def main() -> None:
    torch.set_num_threads(1)
    config = KPoolLoraConfig(
        r=4, lora_alpha=8, target_modules="all-linear", n_adapters=4, k_active=2, sideband_addr="tcp://127.0.0.1:0"
    )
    model = get_peft_model(tiny_llama(), config)
    pool = KPoolCallback(config)  # before TrainingArguments, which then take this process for a whole job
    arguments = TrainingArguments(
        output_dir=str(OUT / f"trainer{pool.replica}"),  # every replica is a main process: a folder for each
        accelerator_config={"use_configured_state": True},
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        num_train_epochs=1,
        learning_rate=1e-2,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    data = [{"input_ids": row, "labels": row} for row in sentences(240, seed=pool.replica)]
    result = Trainer(model=model, args=arguments, train_dataset=data, callbacks=[pool]).train()
    # Training has ended after the last round: every replica holds the same adapter now.
    if pool.replica == 0:
        model.save_pretrained(OUT / "adapter")
    values = b"".join(value.cpu().numpy().tobytes() for value in get_peft_model_state_dict(model).values())
    rounds = pool.handle.version
    facts = {"loss": result.training_loss, "rounds": rounds, "digest": hashlib.sha256(values).hexdigest()}
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / f"replica{pool.replica}.json").write_text(json.dumps(facts))
    print(f"replica {pool.replica}: mean loss {result.training_loss:.3f} after {rounds} rounds")


if __name__ == "__main__":
    main()
