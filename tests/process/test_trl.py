"""TRL's SFTTrainer makes the PEFT model itself, from our config; the callback does the rest."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from .test_examples import EXAMPLES, torchrun

ROOT = Path(__file__).resolve().parents[2]

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


COUNTS = """
import json, sys, tempfile
from pathlib import Path
sys.path.insert(0, {root!r})
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer
from tests.library import config, session_of_one
from tests.support import tiny_model
from tsugi_kpool.library.plesio import begin_anew
from tsugi_kpool.world import World

torch.set_num_threads(1)
words = {{word: i for i, word in enumerate(["<pad>", "<end>", "<user>", "<asst>", *(f"w{{i}}" for i in range(60))])}}
tokenizer = Tokenizer(models.WordLevel(words, unk_token="<end>"))
tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>")
tokenizer.chat_template = (
    "{{% for m in messages %}}{{% if m.role == 'user' %}}<user> {{{{ m.content }}}} {{% else %}}<asst> "
    "{{% generation %}}{{{{ m.content }}}} <end> {{% endgeneration %}}{{% endif %}}{{% endfor %}}"
)
text = lambda start, length: " ".join(f"w{{(start + 3 * i) % 60}}" for i in range(length))
said = lambda role, s, length: {{"role": role, "content": text(s, length)}}
turns = lambda s: [said("user", s, 3 + s % 4), said("assistant", s, 2 + s % 5)]
chats = Dataset.from_list([{{"messages": turns(s)}} for s in range(16)])
texts = Dataset.from_dict({{"text": [text(s, 4 + s % 7) for s in range(16)]}})
ASSISTANT = {{"assistant_only_loss": True}}
CASES = {{
    "padded, bf16": (texts, {{"bf16": True}}),
    "padding-free": (texts, {{"bf16": False, "padding_free": True, "max_length": None}}),
    "packed": (texts, {{"bf16": False, "packing": True, "max_length": 32}}),
    "assistant": (chats, {{"bf16": False, **ASSISTANT}}),
    "assistant, padding-free": (chats, {{"bf16": False, "padding_free": True, "max_length": None, **ASSISTANT}}),
    "assistant, accumulated, bf16": (chats, {{"bf16": True, "gradient_accumulation_steps": 2, **ASSISTANT}}),
}}

def counts(data, options):
    begin_anew(World())
    settings = config(payload="fp32", min_steps=1)
    arguments = SFTConfig(
        tempfile.mkdtemp(), max_steps=3, use_cpu=True, save_strategy="no", report_to="none", disable_tqdm=True,
        per_device_train_batch_size=2, accelerator_config={{"use_configured_state": True}}, **options,
    )
    trainer = SFTTrainer(
        tiny_model(), args=arguments, train_dataset=data, processing_class=tokenizer, peft_config=settings
    )
    labels, compute = [], trainer.compute_loss
    def seen(model, inputs, *args, **kwargs):
        labels.append(int((inputs["labels"][..., 1:] != -100).sum()))
        return compute(model, inputs, *args, **kwargs)
    trainer.compute_loss = seen
    with session_of_one(Path(tempfile.mkdtemp()) / "keys", trainer.model, settings) as session:
        trainer.train()
    return {{
        "labels": sum(labels), "committed": session.engine.buffer.ledger.committed,
        "precision": trainer.accelerator.mixed_precision,
    }}

with open({out!r}, "w") as file:
    json.dump({{name: counts(*case) for name, case in CASES.items()}}, file)
"""


def test_the_ledger_counts_the_labels_of_a_trainer(tmp_path):
    """Without padding, packed, of answers alone, in bf16: what TRL trains on is what a round weighs."""
    program, out = tmp_path / "counts.py", tmp_path / "counts.json"
    program.write_text(COUNTS.format(root=str(ROOT), out=str(out)))
    result = subprocess.run(
        [sys.executable, program], capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path
    )
    assert result.returncode == 0, result.stdout + result.stderr
    found = json.loads(out.read_text())
    assert {name: each["committed"] for name, each in found.items()} == {
        name: [each["labels"]] * 4 for name, each in found.items()
    }
    assert all(each["labels"] > 0 for each in found.values())
    assert {name for name, each in found.items() if each["precision"] == "bf16"} == {
        "padded, bf16",
        "assistant, accumulated, bf16",
    }
