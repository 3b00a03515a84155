"""A run's model after training: found, asked, measured, merged."""

from __future__ import annotations

import hashlib
import io
import json
import socket
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from tests.unit.test_renamed import earlier_run
from tsugi_cli.config.compose import compose, config_hash, resolved_yaml, to_tree
from tsugi_cli.config.spec import Lora
from tsugi_cli.finetune.ask import Speaker, both, samples_of
from tsugi_cli.finetune.export import beside, export
from tsugi_cli.finetune.lora import add_pool
from tsugi_cli.finetune.merge import difference, export_adapter, export_merged, logits
from tsugi_cli.finetune.model import load
from tsugi_cli.finetune.push import check_name, push
from tsugi_cli.finetune.trained import find, load_trained
from tsugi_cli.record.answer import Answer
from tsugi_cli.record.run_dir import RunPaths
from tsugi_kpool.core.checkpoint import ANCHORS
from tsugi_kpool.engine.pool import AdapterPool
from tsugi_kpool.engine.state import ANCHOR
from tsugi_kpool.errors import ConfigError, ExportError, MachineError

SPEC = compose(["model=tiny"])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run directory as training leaves it, whose adapter does something."""
    paths = RunPaths(tmp_path_factory.mktemp("runs") / "20260101-000000-tiny")
    paths.root.mkdir()
    paths.config.write_text(resolved_yaml(SPEC), encoding="utf-8")
    paths.config_hash.write_text(config_hash(SPEC), encoding="utf-8")
    base, tokenizer = load(SPEC.model)
    model = add_pool(base, SPEC.lora)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.05)
    export(model, paths.adapter, beside(SPEC, model, tokenizer, "d" * 64))
    return paths


def test_a_run_that_does_not_exist_is_answered_with_the_nearest(run):
    with pytest.raises(ConfigError, match=f"no such run directory; did you mean {run.root}"):
        find(run.root.with_name("20260101-000000-tni"), None)
    with pytest.raises(ConfigError, match=r"is no run directory: it holds none of config\.yaml"):
        find(run.root.parent, None)


def test_a_checkpoint_that_does_not_exist_is_answered_with_the_nearest(run):
    (run.checkpoints / "v000120").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"did you mean v000120\? \(there: v000120\)"):
        find(run.root, "v00012")
    with pytest.raises(ConfigError, match="v000120: it has no manifest"):
        find(run.root, "v000120")


def test_a_run_of_which_nothing_was_kept_says_so(run, tmp_path):
    for name in ("config.yaml", "config.sha256"):
        (tmp_path / name).write_bytes((run.root / name).read_bytes())
    with pytest.raises(ConfigError, match="neither an adapter nor a checkpoint"):
        find(tmp_path, None)


def test_a_run_of_an_earlier_version_is_asked_and_exported_as_it_was(tmp_path):
    """Its settings name rank and alpha of one adapter; its checkpoint is of the pool that they made."""
    tree = to_tree(compose(["model=tiny", "kpool.n=4", "kpool.k=2"]))
    tree["kpool"] |= {"r": 3, "lora_alpha": 6.0, "target_modules": ["q_proj", "v_proj"]}
    del tree["lora"]
    paths = earlier_run(tmp_path, tree)
    wanted = add_pool(load(SPEC.model)[0], Lora(rank=12, alpha=24.0, target_modules=["q_proj", "v_proj"]))
    pool = AdapterPool(wanted, 4)
    pool.write(torch.randn(4, pool.size, generator=torch.Generator().manual_seed(0)) * 0.1)
    folder = paths.checkpoints / "v000001"
    folder.mkdir(parents=True)
    save_file({ANCHOR: pool.read(range(4))}, folder / ANCHORS)
    export(wanted, paths.adapter)
    trained = find(paths.root, None)
    for state in (trained, replace(trained, checkpoint=folder)):
        model, _ = load_trained(state)
        config = model.peft_config["default"]
        assert (config.r, config.lora_alpha) == (12, 24.0)
        assert difference(logits(model), logits(wanted.eval())) <= 1e-6
    assert export_merged(trained, tmp_path / "whole") <= 1e-4


def test_a_merged_model_says_what_base_and_adapter_say(run, tmp_path):
    trained = find(run.root, None)
    assert export_merged(trained, tmp_path / "whole") <= 1e-4
    model, _ = load_trained(trained)
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    assert difference(logits(whole), logits(model)) <= 1e-4
    with model.disable_adapter():
        assert difference(logits(model), logits(whole)) > 1e-2, "the adapter must do something"
    assert {"README.md", "tokenizer.json", "chat_template.jinja"} <= {
        each.name for each in (tmp_path / "whole").iterdir()
    }
    with pytest.raises(ConfigError, match="is there already"):
        export_merged(trained, tmp_path / "whole")


def test_a_merged_model_that_says_something_else_is_not_written(run, tmp_path, monkeypatch):
    monkeypatch.setattr("tsugi_cli.finetune.merge.TOLERANCE", -1.0)
    with pytest.raises(ExportError, match="off those of base and adapter: not written"):
        export_merged(find(run.root, None), tmp_path / "whole")
    assert not list(tmp_path.iterdir())


def test_an_exported_adapter_is_the_same_files(run, tmp_path):
    export_adapter(find(run.root, None), tmp_path / "copy")
    digests = [
        {each.name: hashlib.sha256(each.read_bytes()).hexdigest() for each in folder.iterdir()}
        for folder in (run.adapter, tmp_path / "copy")
    ]
    assert digests[0] == digests[1]


def test_measures_weigh_every_token_the_same(run, tmp_path):
    file = tmp_path / "some.jsonl"
    rows = [{"prompt": "a", "completion": "b" * length} for length in (1, 40)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    model, tokenizer = load_trained(find(run.root, None))
    samples = samples_of(SPEC, str(file))
    pad = tokenizer.pad_token_id
    whole = both(model, samples, SPEC, 2, pad)
    single = [both(model, [each], SPEC, 1, pad) for each in samples]
    for stage in ("base", "trained"):
        parts = [each[stage] for each in single]
        assert whole[stage]["loss_tokens"] == sum(each["loss_tokens"] for each in parts) == 43
        assert whole[stage]["loss_sum"] == pytest.approx(sum(each["loss_sum"] for each in parts), rel=1e-4)
    assert whole["base"]["loss_sum"] != whole["trained"]["loss_sum"]


def test_answers_come_beside_each_other_and_a_chat_remembers(run, monkeypatch):
    model, tokenizer = load_trained(find(run.root, None))
    out = io.StringIO()
    speaker = Speaker(model, tokenizer, Answer(out), 8)
    speaker.compare("hello")
    lines = io.StringIO()
    Speaker(model, tokenizer, Answer(io.StringIO(), lines), 8).compare("hello")
    told = json.loads(lines.getvalue())
    assert f"base: {told['base']}" in out.getvalue()
    assert set(told) == {"prompt", "base", "trained"}
    assert out.getvalue().startswith("base: ")
    assert "\ntrained: " in out.getvalue()
    assert "\x1b" not in out.getvalue()
    heard = []
    monkeypatch.setattr(speaker, "answer", lambda turns: heard.append([each["content"] for each in turns]) or "yes")
    speaker.chat(["one\n", "\n", "two\n"], lambda: None)
    assert heard == [["one"], ["one", "yes", "two"]]


@pytest.mark.parametrize(
    ("name", "reason"),
    [("mine", "needs its owner, such as USER/mine"), ("me/a--b", "Cannot have -- or .."), ("a/b/c", "a/b/c")],
)
def test_a_name_that_the_hub_cannot_have_is_refused_before_anything_is_written(name, reason):
    with pytest.raises(ConfigError, match=f"--push {name}: .*{reason}"):
        check_name(name)


def test_a_hub_that_does_not_answer_is_told_in_one_line_with_where_the_files_are(run, tmp_path, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens there
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{taken.getsockname()[1]}")
        monkeypatch.setenv("HF_HOME", str(tmp_path))
        with pytest.raises(MachineError, match=r"--push me/mine: .*refused.*HF_TOKEN.*is whole") as told:
            push(run.adapter, "me/mine")
    assert "\n" not in str(told.value)
