"""The programs of docs/examples under a real torchrun: two replicas end on one adapter, which plain PEFT loads."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import free_port

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--rdzv-backend=tsugi", "--nproc-per-node"]

pytestmark = [pytest.mark.process, pytest.mark.timeout(400)]


def torchrun(processes: int, program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program to its end."""
    return subprocess.run(
        [*TORCHRUN, str(processes), str(program), *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


RARELY = pytest.mark.nightly


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("plain_loop.py", marks=pytest.mark.fresh),
        pytest.param("accelerate_loop.py", marks=RARELY),
        pytest.param("trainer.py", marks=RARELY),
    ],
)
def test_two_replicas_end_on_one_adapter(name, tmp_path):
    result = torchrun(2, EXAMPLES / name, str(tmp_path))
    assert result.returncode == 0, result.stdout + result.stderr
    facts = [json.loads((tmp_path / f"replica{replica}.json").read_text()) for replica in range(2)]
    assert facts[0]["digest"] == facts[1]["digest"]
    assert facts[0]["rounds"] == facts[1]["rounds"] >= 2, "the last one, and others before"
    assert all(0.0 < fact["loss"] < 4.6 for fact in facts), "no better than a guess among 97 tokens"
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["r"] == 16


@pytest.mark.parametrize("inside", ["ddp", pytest.param("fsdp2", marks=RARELY)])
def test_two_workers_of_two_replicas_end_on_one_adapter(inside, tmp_path):
    """One torchrun agent for each replica: the default group is the replica's own."""
    command = [*TORCHRUN, "2", str(EXAMPLES / "workers.py"), str(tmp_path), inside]
    usual = {**os.environ, "OMP_NUM_THREADS": "1", "TSUGI_REPLICAS": "2"}
    agents = [
        subprocess.Popen(command, env={**usual, "TSUGI_REPLICA": str(replica)}, stderr=subprocess.PIPE, text=True)
        for replica in range(2)
    ]
    try:
        errors = [agent.communicate(timeout=240)[1] for agent in agents]
    finally:
        for agent in agents:
            agent.kill()
    assert [agent.returncode for agent in agents] == [0, 0], "\n".join(errors)
    facts = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("replica?.?.json"))]
    assert len(facts) == 4
    assert len({fact["digest"] for fact in facts}) == 1
    assert len({fact["rounds"] for fact in facts}) == 1
    assert facts[0]["rounds"] >= 2, "the last one, and others before"
    assert all(0.0 < fact["loss"] < 4.6 for fact in facts), "no better than a guess among 97 tokens"
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()


def test_a_program_without_torchrun_is_one_replica(tmp_path):
    result = subprocess.run(
        [sys.executable, str(EXAMPLES / "plain_loop.py"), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert json.loads((tmp_path / "replica0.json").read_text())["rounds"] == 0


SEED_PROGRAM = """
import sys
import torch
sys.path.insert(0, {examples!r})
from plain_loop import sentences, tiny_llama
from tsugi_kpool import KPoolLoraConfig, plesio_init
from peft import get_peft_model
torch.set_num_threads(1)
model = tiny_llama()
config = KPoolLoraConfig(
    r=16, lora_alpha=32, target_modules=["q_proj", "v_proj"],
    n_adapters=8,
    k_active=2,
    sideband_addr="tcp://0.0.0.0:{port}",
    buffer_convergence_eps=1e-3,
)
model = get_peft_model(model, config)
plesio_init(model, config)
optimizer = torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)
for step, batch in enumerate(sentences(80, seed=0).split(4)):
    loss = model(input_ids=batch, labels=batch).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    {fault}
"""


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("0.0.0.0", port))
        except OSError:
            return False
    return True


PUBLISHED = """
from tsugi_kpool import KPoolLoraConfig, plesio_init
from transformers import AutoModelForCausalLM
from peft import get_peft_model
model = AutoModelForCausalLM.from_pretrained("meta-llama/Meta-Llama-3-8B")
config = KPoolLoraConfig(
    r=16, lora_alpha=32, target_modules=["q_proj", "v_proj"],
    n_adapters=8,                          # N
    k_active=2,                            # K-out-of-N per step
    sideband_addr="tcp://0.0.0.0:51820",   # phase-correction sideband
    buffer_convergence_eps=1e-3,           # buffer-variance trigger threshold
)
model = get_peft_model(model, config)
plesio_init(model, config)   # starts the sideband + aggregator threads
# from here, train as in any peft + accelerate fine-tune
"""
"""The program that this project began from, to the letter."""

FINE_TUNE = """
import sys
import torch
from accelerate import Accelerator
sys.path.insert(0, {examples!r})
from plain_loop import sentences
torch.set_num_threads(1)
accelerator = Accelerator()
optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-3)
model, optimizer, loader = accelerator.prepare(
    model, optimizer, torch.utils.data.DataLoader(sentences(80, seed=0), batch_size=4)
)
for batch in loader:
    accelerator.backward(model(input_ids=batch, labels=batch).loss)
    optimizer.step()
    optimizer.zero_grad()
"""


def test_the_published_program_runs_to_the_letter(tmp_path):
    """Only the model's name is replaced, and the port where another program has it."""
    sys.path.insert(0, str(EXAMPLES))
    try:
        from plain_loop import tiny_llama
    finally:
        sys.path.remove(str(EXAMPLES))
    tiny_llama().save_pretrained(tmp_path / "model")
    text = PUBLISHED.replace("meta-llama/Meta-Llama-3-8B", str(tmp_path / "model"))
    if not is_free(51820):
        text = text.replace("51820", str(free_port()))
    program = tmp_path / "published.py"
    program.write_text(text + FINE_TUNE.format(examples=str(EXAMPLES)))
    result = torchrun(2, program)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "asks for more steps than max_steps allows" in result.stderr, "what a user should know of 1e-3"


def test_an_exception_in_one_replica_ends_the_other(tmp_path):
    """Both are processes of their own here: torchrun would end the other one by itself."""
    fault = "if os.environ['WHO'] == '1' and step == 5: raise KeyError('spilt')"
    text = SEED_PROGRAM.format(examples=str(EXAMPLES), port=free_port(), fault=fault)
    place = f"replica=int(os.environ['WHO']), replicas=2, keys={str(tmp_path / 'keys')!r}"
    text = text.replace("plesio_init(model, config)", f"import os; plesio_init(model, config, {place})")
    text = text.replace("sentences(80,", "sentences(40_000,")
    program = tmp_path / "seed.py"
    program.write_text(text)
    processes = [
        subprocess.Popen(
            [sys.executable, str(program)], env={**os.environ, "WHO": who}, stderr=subprocess.PIPE, text=True
        )
        for who in "01"
    ]
    try:
        errors = [process.communicate(timeout=240)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [1, 1]
    assert "the run has failed: replica 1: KeyError: 'spilt'" in errors[0]
    assert not (tmp_path / "keys").exists()
