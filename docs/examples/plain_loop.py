"""The pool in a plain PyTorch loop.

torchrun --rdzv-backend=tsugi --nproc-per-node 2 docs/examples/plain_loop.py [OUT]
"""

import hashlib
import json
import sys
from pathlib import Path

import torch
from peft import get_peft_model, get_peft_model_state_dict
from transformers import LlamaConfig, LlamaForCausalLM

from tsugi_kpool import KPoolLoraConfig, plesio_init

OUT = Path(sys.argv[1] if len(sys.argv) > 1 else "example-out")


def tiny_llama() -> LlamaForCausalLM:
    """Stands for AutoModelForCausalLM.from_pretrained(...): random, but the same in every process."""
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=97, num_key_value_heads=2, **shape))


def sentences(count: int, seed: int) -> torch.Tensor:
    """What is to be learnt: the next token is this one plus three. [count, 24] token ids."""
    start = torch.randint(0, 97, (count, 1), generator=torch.Generator().manual_seed(seed))
    return (start + 3 * torch.arange(24)) % 97


def main() -> None:
    torch.set_num_threads(1)
    config = KPoolLoraConfig(
        r=4, lora_alpha=8, target_modules="all-linear", n_adapters=4, k_active=2, sideband_addr="tcp://127.0.0.1:0"
    )
    model = get_peft_model(tiny_llama(), config)
    with plesio_init(model, config) as handle:
        optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
        for batch in sentences(240, seed=handle.replica).split(4):  # every replica reads data of its own
            loss = model(input_ids=batch, labels=batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    # The block has ended after the last round: every replica holds the same adapter now.
    if handle.replica == 0:
        model.save_pretrained(OUT / "adapter")
    values = b"".join(value.numpy().tobytes() for value in get_peft_model_state_dict(model).values())
    facts = {"loss": float(loss.detach()), "rounds": handle.version, "digest": hashlib.sha256(values).hexdigest()}
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / f"replica{handle.replica}.json").write_text(json.dumps(facts))
    print(f"replica {handle.replica}: loss {facts['loss']:.3f} after {handle.version} rounds")


if __name__ == "__main__":
    main()
