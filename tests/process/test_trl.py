"""TRL's SFTTrainer makes the PEFT model itself, from our config; the callback does the rest."""

from __future__ import annotations

import importlib.util
import json

import pytest

from .test_examples import EXAMPLES, torchrun

pytestmark = [
    pytest.mark.process,
    pytest.mark.nightly,
    pytest.mark.timeout(400),
    pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="TRL is not installed"),
]

PROGRAM = """
import json, sys
sys.path.insert(0, {examples!r})
import torch
from datasets import Dataset
from peft import get_peft_model_state_dict
from plain_loop import tiny_llama
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer
from tsugi_kpool import KPoolCallback, KPoolLoraConfig

torch.set_num_threads(1)
words = {{word: i for i, word in enumerate(["<pad>", "<end>", *(f"w{{i}}" for i in range(90))])}}
tokenizer = Tokenizer(models.WordLevel(words, unk_token="<end>"))
tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>")
config = KPoolLoraConfig(
    r=2, lora_alpha=4, target_modules="all-linear", n_adapters=4, k_active=2, sideband_addr="tcp://127.0.0.1:0",
    mode={mode!r},
)
pool = KPoolCallback(config)
arguments = SFTConfig(
    f"{out}/trainer{{pool.replica}}", accelerator_config={{"use_configured_state": True}}, learning_rate=1e-2,
    bf16=False, per_device_train_batch_size=4, max_steps=8, save_strategy="no", report_to="none", disable_tqdm=True,
)
data = Dataset.from_dict({{"text": [" ".join(f"w{{(s + 3 * i) % 90}}" for i in range(12)) for s in range(64)]}})
trainer = SFTTrainer(
    tiny_llama(), args=arguments, train_dataset=data, processing_class=tokenizer, peft_config=config, callbacks=[pool]
)
trainer.train()
values = get_peft_model_state_dict(trainer.model)
engine = pool.handle._session.engine
progress = engine.progress
facts = {{
    "sum": sum(float(value.double().abs().sum()) for value in values.values()),
    "rank": {{value.shape[0] for name, value in values.items() if "lora_A" in name}}.pop(),
    "rounds": pool.handle.version, "steps": progress.steps, "tokens": progress.tokens,
    "own_state": len(trainer.optimizer.state), "clip": getattr(engine.buffer.update, "_grad_clip", None),
}}
with open(f"{out}/replica{{pool.replica}}.json", "w") as file:
    json.dump(facts, file)
"""


@pytest.mark.parametrize("mode", ["local", "gradient"])
def test_sft_trainer(tmp_path, mode):
    program = tmp_path / "sft.py"
    program.write_text(PROGRAM.format(examples=str(EXAMPLES), out=tmp_path, mode=mode))
    result = torchrun(2, program)
    assert result.returncode == 0, result.stdout + result.stderr
    facts = [json.loads((tmp_path / f"replica{replica}.json").read_text()) for replica in range(2)]
    assert facts[0]["sum"] == facts[1]["sum"]
    assert facts[0]["rounds"] == facts[1]["rounds"] >= 1
    assert all((fact["rank"], fact["steps"]) == (8, 8) and fact["tokens"] > 0 for fact in facts)
    if mode == "gradient":
        assert [(fact["own_state"], fact["clip"]) for fact in facts] == [(0, 1.0)] * 2, "the fleet steps, and clips"
