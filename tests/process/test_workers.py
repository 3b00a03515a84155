"""Two workers in each replica under real torchrun, DDP or FSDP2 inside, K-Pool between: all four obey the rules."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.process import local_group_program
from tests.support import hub_plan, tiny_model
from tsugi_kpool.core.settings import Mode
from tsugi_kpool.sideband import keys
from tsugi_kpool.sideband.hub.server import HubServer
from tsugi_kpool.sideband.keys import RunKeys

pytestmark = [pytest.mark.process, pytest.mark.timeout(500)]

WAIT_S = 200
BETWEEN = {
    "ddp-local": {"inside": "ddp", "settings": {}},
    "fsdp2-local": {"inside": "fsdp2", "settings": {}},
    "ddp-gradient": {"inside": "ddp", "settings": {"mode": Mode.GRADIENT}},
    "fsdp2-gradient": {"inside": "fsdp2", "settings": {"mode": Mode.GRADIENT, "overlap": False, "payload": "bf16"}},
}
ALONE = {how: {"inside": how, "settings": {}} for how in ("ddp", "fsdp2")}
CASES = [{"name": name, "replicas": 2, **case} for name, case in BETWEEN.items()]
CASES += [{"name": name, "replicas": 1, **case} for name, case in ALONE.items()]


def agent(folder: Path, replica: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--rdzv-backend=tsugi", "--nproc-per-node=2"]
    command += ["-m", "tests.process.local_group_program", str(folder), str(replica)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    )


def write_tied(folder: Path) -> None:
    """A model whose embedding is its output layer, too; its rows are odd."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from tsugi_cli.config.compose import compose
    from tsugi_cli.finetune.model import load_tokenizer

    config = LlamaConfig(
        vocab_size=259, hidden_size=32, intermediate_size=63, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    load_tokenizer(compose(["model=tiny"]).model).save_pretrained(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Both replicas have gone through all cases; here lies what they left."""
    folder = tmp_path_factory.mktemp("workers")
    (folder / "cases.json").write_text(json.dumps(CASES))
    write_tied(folder / "tied")
    hubs = []
    for case in CASES:
        plan = hub_plan(
            replicas=case["replicas"],
            samples=local_group_program.SAMPLES,
            micro_batch=local_group_program.MICRO_BATCH,
            lease_samples=local_group_program.MICRO_BATCH,
            kpool=local_group_program.settings_of(case),
            start_timeout_s=WAIT_S,
        )
        hub = HubServer(plan, RunKeys.generate(), lambda told: None)
        hubs.append(hub)
        keys.save(hub.start("127.0.0.1", 0), folder / f"{case['name']}.keys")
    agents = [agent(folder, replica) for replica in range(2)]
    try:
        errors = [each.communicate(timeout=WAIT_S)[1] for each in agents]
        assert [each.returncode for each in agents] == [0, 0], "\n".join(errors)
    finally:
        for each in agents:
            each.kill()
        for hub in hubs:
            hub.stop()
    return folder


def facts_of(folder: Path, name: str) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob(f"{name}.?.?.json"))]


@pytest.mark.parametrize("name", BETWEEN)
def test_all_workers_of_all_replicas_end_with_the_same_bits(folder, name):
    facts = facts_of(folder, name)
    assert len(facts) == 4
    assert len({fact["digest"] for fact in facts}) == 1
    assert len({fact["version"] for fact in facts}) == 1
    assert facts[0]["version"] >= 2


@pytest.mark.parametrize("name", BETWEEN)
def test_every_token_of_every_worker_is_committed_once(folder, name):
    """A replica's weight is that of all its workers, and only its leader keeps the book."""
    ledgers = [fact for fact in facts_of(folder, name) if "produced" in fact]
    assert len(ledgers) == 2
    assert all(ledger["produced"] == ledger["committed"] for ledger in ledgers)
    tokens = sum(
        sum(label != -100 for label in local_group_program.sample(p).labels[1:])
        for p in range(local_group_program.SAMPLES)
    )
    assert sum(ledger["produced"][0] for ledger in ledgers) == tokens


@pytest.mark.parametrize("name", BETWEEN)
def test_the_export_is_the_live_model_in_plain_peft(folder, name):
    from peft import PeftModel

    loaded = PeftModel.from_pretrained(tiny_model(), folder / name).eval()
    with torch.no_grad():
        logits = loaded(input_ids=torch.arange(20)[None]).logits[0, -1]
    for fact in facts_of(folder, name)[:2]:
        assert torch.allclose(logits, torch.tensor(fact["logits"]), atol=1e-5)


@pytest.mark.parametrize("name", ALONE)
def test_two_workers_train_as_one_does_on_the_same_micro_batches(folder, name):
    """Unequal numbers of tokens, of samples, and at the end none for one of them: the mean is over all tokens."""
    from tsugi_cli.finetune.objectives import supervised_loss
    from tsugi_cli.finetune.tokens import collate

    model = local_group_program.start_model(local_group_program.settings_of(CASES[0]), seed=0)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    for samples in local_group_program.micro_batches(0, local_group_program.SAMPLES):
        supervised_loss(model, collate(samples, 0)).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    model.eval()
    with torch.no_grad():
        logits = model(input_ids=torch.arange(20)[None]).logits[0, -1]
    for fact in facts_of(folder, name):
        assert torch.allclose(torch.tensor(fact["logits"]), logits, atol=1e-4)


@pytest.mark.parametrize("name", local_group_program.SPREAD)
def test_a_base_in_shards_is_read_by_one_worker_and_says_what_a_whole_one_says(folder, name):
    facts = [json.loads((folder / f"read.{name}.{worker}.json").read_text()) for worker in range(2)]
    assert [each["reads"] for each in facts] == [1, 0]
    for each in facts:
        assert each["different"] == []
        assert each["apart"] <= 1e-5
        assert each["share"] <= 0.52, "a worker holds its own rows, not more"


def base_loss(words: list[str]) -> float:
    """What one process says of the same eval samples."""
    from tsugi_cli.config.compose import compose
    from tsugi_cli.finetune.evaluate import Evaluator
    from tsugi_cli.finetune.model import load
    from tsugi_cli.finetune.ready import opened
    from tsugi_kpool.engine.inside import ALONE

    spec = compose([*words, "topology.workers=1"])
    model, tokenizer = load(spec.model)
    evaluator = Evaluator(spec, opened(spec), tokenizer, 0, ALONE, torch.device("cpu"))
    sums = evaluator.run(model, "base", stop=lambda: False).sums
    return sums["loss_sum"] / sums["loss_tokens"]


@pytest.mark.fresh
def test_a_run_whose_replica_is_two_workers_of_fsdp2(tmp_path):
    """The whole command on packed rows: each is trained once, the adapter is there, and a log for each worker."""
    words = ["model=tiny", "data.n_train=64", "data.n_eval=5", "data.n_test=3", "evaluate.max_new_tokens=4"]
    words += ["evaluate.batch=2", "train.micro_batch=3", "train.max_steps=8", "topology.replicas=1"]
    words += ["topology.min_replicas=1", "topology.workers=2", "topology.inside=fsdp2"]
    words += ["data.packing=true", "data.max_tokens=400"]
    result = subprocess.run(
        [sys.executable, "-m", "tsugi_cli.app", "finetune", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    run = tmp_path / "runs" / "latest"
    summary = json.loads((run / "summary.json").read_text())
    layout = json.loads((run / "data.report.json").read_text())["layout"]
    assert layout["rows"] < layout["samples"] == 64
    assert summary["samples"] == summary["samples_total"] == 24, "steps of three rows"
    assert summary["evaluation"]["trained"]["loss"] < summary["evaluation"]["base"]["loss"]
    assert summary["evaluation"]["base"]["loss"] == pytest.approx(base_loss(words), rel=1e-3)
    assert (run / "adapter" / "adapter_model.safetensors").exists()
    assert {path.name for path in (run / "logs").glob("*.log")} == {"replica0.worker0.log", "replica0.worker1.log"}
