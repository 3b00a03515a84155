"""What had another name: journals keep it, older runs are read by it, and who types one is told of the new one.

Frames are in test_messages.py (`frames_of_version_1.json`).
"""

from __future__ import annotations

import hashlib
import json
import zlib

import pytest
import yaml

from tests.pictures import fleet
from tsugi_cli.bench import spec as bench
from tsugi_cli.bench.compare.folder import Folder
from tsugi_cli.config.compose import compose, read_earlier, to_tree
from tsugi_cli.config.renamed import RENAMED
from tsugi_cli.config.schema import leaf_types
from tsugi_cli.console.status import in_json
from tsugi_cli.record.records import Tail
from tsugi_cli.record.run_dir import RunPaths
from tsugi_cli.record.status_log import compact, restore
from tsugi_kpool.core import journal, records
from tsugi_kpool.core.diagnosis import Part
from tsugi_kpool.core.renamed import FIELDS
from tsugi_kpool.errors import ConfigError

LORA = {"kpool.r": 3, "kpool.lora_alpha": 6.0, "kpool.target_modules": ["q_proj"]}
"""Those of one adapter, where rank and alpha are the whole's now."""
OLD = {"train.max_micro_steps": 7, "train.lease_micro_steps": 3, "kpool.min_micro": 3, "kpool.max_micro": 9,
       "kpool.hold_s": 0.01, "fault.micro_step_s": ["0:0.25"]}  # fmt: skip
"""Settings as an earlier version wrote them."""


def test_every_new_name_is_a_setting():
    assert {new for old, new in RENAMED.items() if not old.startswith("bench.")} <= set(leaf_types())
    assert not set(RENAMED) & set(leaf_types())
    assert {*OLD, *LORA} == {old for old in RENAMED if not old.startswith("bench.")}


@pytest.mark.parametrize("old", OLD)
def test_a_typed_old_key_is_answered_with_the_new_one(old):
    with pytest.raises(ConfigError) as caught:
        compose([f"{old}=5"])
    assert caught.value.problems == [f"{old} has another name: write {RENAMED[old]}, which means the same"]


@pytest.mark.parametrize("old", ["kpool.r", "kpool.lora_alpha"])
def test_who_types_a_number_of_one_adapter_is_told_that_it_is_the_wholes_now(old):
    with pytest.raises(ConfigError) as caught:
        compose([f"{old}=4"])
    told = f"{old} has another name: write {RENAMED[old]}, of the whole LoRA: kpool.n times as much"
    assert caught.value.problems == [told]


def test_a_benchmarks_old_key_is_answered_with_the_new_one():
    with pytest.raises(ConfigError, match=r"bench\.micro_steps has another name: write bench\.steps"):
        bench.read(["bench.micro_steps=5"])


def test_a_users_recipe_with_old_keys_is_refused_by_file_and_key(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("train: {max_micro_steps: 5}\nkpool: {hold_s: 0}\n")
    with pytest.raises(ConfigError) as caught:
        compose([f"recipe={recipe}"])
    assert sorted(caught.value.problems) == [
        f"{recipe}: kpool.hold_s has another name: write kpool.fire_delay_s, which means the same",
        f"{recipe}: train.max_micro_steps has another name: write train.max_steps, which means the same",
    ]


def test_a_run_of_an_earlier_version_keeps_its_values(tmp_path):
    """Both ways that `resume=` reads it: as the settings it was trained with, and as the recipe of the new run."""
    spec = compose([f"{RENAMED[old]}={json.dumps(value) if old.startswith('fault') else value}"
                    for old, value in OLD.items()])  # fmt: skip
    tree = to_tree(spec)
    for old in OLD:
        (group, name), (_, now) = old.split("."), RENAMED[old].split(".")
        if group != "bench":
            tree[group][name] = tree[group].pop(now)
            assert tree[group][name] == OLD[old]
    paths = earlier_run(tmp_path, tree)
    assert read_earlier(paths) == (spec, [])
    assert compose([f"recipe={paths.config}"], resumes=True) == spec


@pytest.mark.parametrize(("mode", "rate"), [("local", 2e-3), ("gradient", 1e-3)])
def test_a_run_from_before_it_was_chosen_by_the_fleet_keeps_its_optimizer_and_its_rate(tmp_path, mode, rate):
    """`train.scale_lr=true` took sqrt(replicas) times the rate, in local mode."""
    spec = compose(["model=tiny", "topology.replicas=4", "train.optimizer=adamw", f"train.lr={rate}",
                    f"kpool.mode={mode}", "kpool.max_staleness=8"])  # fmt: skip
    tree = to_tree(spec)
    del tree["train"]["optimizer"]
    tree["train"] |= {"scale_lr": True, "lr": 1e-3}
    paths = earlier_run(tmp_path, tree)
    assert read_earlier(paths) == (spec, [])
    assert compose([f"recipe={paths.config}"], resumes=True) == spec
    with pytest.raises(ConfigError, match=r"train\.scale_lr has gone: train\.optimizer=auto"):
        compose([f"recipe={paths.config}"])


def earlier_run(folder, tree):
    """A run's directory with these settings."""
    paths = RunPaths(folder)
    paths.config.write_text(yaml.dump(tree))
    paths.config_hash.write_text(
        hashlib.sha256(json.dumps(tree, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    )
    return paths


def test_the_lora_of_a_run_from_before_it_had_settings_of_its_own(tmp_path):
    spec = compose(["model=tiny", "kpool.n=4", "lora.rank=12", "lora.alpha=24", "lora.target_modules=[q_proj]"])
    tree = to_tree(spec)
    tree["kpool"] |= {old.partition(".")[2]: value for old, value in LORA.items()}
    del tree["lora"]
    for later in ("revision", "quantize", "attention", "gradient_checkpointing", "compile", "liger"):
        del tree["model"][later]
    paths = earlier_run(tmp_path, tree)
    found, lacking = read_earlier(paths)
    assert found == spec
    assert "lora.rank" not in lacking, "its value is the run's own"
    assert {"lora.dropout", "model.quantize"} <= set(lacking)
    assert compose([f"recipe={paths.config}"], resumes=True) == spec


LINES = (
    '{"at_s":0.0,"record":{"type":"Began","run":"r","config_hash":"c","replicas":2,"format":2}}',
    '{"at_s":1.0,"record":{"type":"PlaceGiven","ticket":"t","replica":1}}',
    '{"at_s":2.0,"record":{"type":"EpochOpened","epoch":1,"members":[0,1],"newcomers":[],"donor":0}}',
    '{"at_s":3.0,"record":{"type":"RoundFired","fire":{"type":"Fire","epoch":1,"round":1,"adapters":[0],'
    '"members":[0,1],"reason":"count","version":0,"active":[]}}}',
    '{"at_s":4.0,"record":{"type":"RoundLanded","landed":{"type":"Landed","seq":2,"replica":0,"incarnation":"i","epoch":1,'
    '"round":1,"digest":"d","seconds":0.1,"payload_bytes":1,"weights":[1,1],"noise_norm2":0.0,"noise_trace":0.0,'
    '"spoilt":[1]}}}',
    '{"at_s":5.0,"record":{"type":"RoundCommitted","round":1,"version":1,"digest":"d","pooled":[2],"micro_step_s":0.5}}',
    '{"at_s":6.0,"record":{"type":"TurnedSlow","replica":1,"incarnation":"i","trained_s":null,'
    '"before":{"micro_step":0.1,"data_wait":0.0,"hold":0.2,"outside":0.0},"before_level":0.0,'
    '"after":{"micro_step":0.4,"data_wait":0.0,"hold":0.3,"outside":0.0},"part":"micro-step","cause":"compute",'
    '"evidence":[],"usual":[0.5]}}',
)
"""Of a journal, as an earlier version wrote them."""


def test_a_journal_of_an_earlier_version_is_gone_on_from():
    data, chain = b"", 0
    for line in LINES:
        chain = zlib.crc32(line.encode(), chain)
        summed = b"%08x %s" % (chain, line.encode())
        data += b"%08x %s\n" % (zlib.crc32(summed), summed)
    _, given, opened, fired, reduced, committed, slow = (entry.record for entry in journal.parse(data).entries)
    assert given == records.SlotGiven("t", 1)
    assert (opened.generation, fired.fire.generation, reduced.reduced.generation) == (1, 1, 1)
    assert (reduced.reduced.unusable, committed.step_s) == ((1,), 0.5)
    assert (slow.before.step, slow.before.sync_wait, Part(slow.part)) == (0.1, 0.2, Part.STEP)


def test_a_journal_keeps_the_names_that_an_earlier_version_reads():
    line, _ = journal.encode_entry(journal.Entry(1.0, records.GenerationOpened(3, (0, 1))))
    assert b'"type":"EpochOpened","epoch":3,' in line


def test_a_benchmark_of_an_earlier_version_is_gone_on_with(tmp_path):
    folder = Folder(tmp_path)
    folder.request.write_text(
        yaml.dump({"base": ["model=tiny", "kpool.min_micro=3"], "bench": ["bench.micro_steps=8"]})
    )
    assert folder.read_request() == (["model=tiny", "kpool.min_steps=3"], ["bench.steps=8"])
    folder.request.write_text(yaml.dump({"base": ["model=tiny", "kpool.r=3", "kpool.lora_alpha=6"], "bench": []}))
    assert folder.read_request()[0] == ["model=tiny", "lora.rank=24", "lora.alpha=48"]
    folder.request.write_text(yaml.dump({"base": ["kpool.n=4", "kpool.r=3"], "bench": []}))
    assert folder.read_request()[0] == ["kpool.n=4", "lora.rank=12"]
    folder.write(tmp_path / "track.json", {"micro_steps": 8, "busy_s": 1.0})
    assert folder.read(tmp_path / "track.json") == {"steps": 8, "busy_s": 1.0}


def read(path, record):
    path.write_text(json.dumps(record) + "\n")
    return next(Tail(path).read())


def test_the_lines_of_an_earlier_run_are_read_by_the_names_of_now(tmp_path):
    step = {"event": "micro_step", "replica": 0, "micro_steps": 4, "micro_step_s": 0.5}
    assert read(tmp_path / "a", step) == {"event": "step", "replica": 0, "steps": 4, "step_s": 0.5}
    fired = {"event": "fired", "round": 1, "held_s": 0.02, "held_for": [1]}
    assert read(tmp_path / "b", fired) == {"event": "fired", "round": 1, "delayed_s": 0.02, "delayed_for": [1]}
    assert read(tmp_path / "c", {"event": "epoch", "epoch": 2}) == {"event": "generation", "generation": 2}
    assert read(tmp_path / "d", {"event": "slow", "part": "hold"})["part"] == Part.SYNC_WAIT


def test_a_status_in_json_has_the_names_of_now():
    said = in_json(fleet(generation=3, reduced=1))
    assert (said["generation"], said["reduced"]) == (3, 1)
    assert not set(FIELDS.values()) & {*said, *said["replicas"][0]}


def test_a_status_is_written_by_the_names_of_now_and_read_by_both(tmp_path):
    record = compact(fleet(generation=3, reduced=1))
    assert "generation" in record
    assert not set(FIELDS.values()) & {*record, *record["replicas"][0]}
    before = {FIELDS.get(name, name): value for name, value in record.items()}
    before["replicas"] = [
        {FIELDS.get(name, name): value for name, value in row.items()} for row in record["replicas"]
    ]
    assert before != record
    assert restore(read(tmp_path / "status", before)) == restore(record)
