"""benchmarks/llama3_8b_lora: the verdict's rules, the records that it reads, and the data that both arms train on."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
HERE = ROOT / "benchmarks" / "llama3_8b_lora"
sys.path.insert(0, str(HERE))
import data  # noqa: E402
import records  # noqa: E402
import verdict  # noqa: E402
from records import Point  # noqa: E402
from verdict import Arm, Pair, Verdict, judge  # noqa: E402

sys.path.remove(str(HERE))

SYNC = Arm(tokens_per_s=1000.0, final_loss=1.0, checkpoints=(3.0, 2.0, 1.0), equal="same")


def pairs(uplifts, above=0.0, **changes):
    """One pair for each uplift."""
    kpool = [replace(SYNC, tokens_per_s=1000.0 * (1 + u), final_loss=1.0 + above, **changes) for u in uplifts]
    return [Pair(f"seed{number}", SYNC, arm) for number, arm in enumerate(kpool)]


@pytest.mark.parametrize(
    ("uplift", "above", "expected"),
    [
        (0.15, 0.0, Verdict.PASS),
        (0.1499, 0.0, Verdict.INCONCLUSIVE),
        (0.05, 0.0, Verdict.INCONCLUSIVE),
        (0.0499, 0.0, Verdict.FAIL),
        (-0.5, 0.0, Verdict.FAIL),
        (0.15, 0.05, Verdict.PASS),
        (0.15, 0.0501, Verdict.FAIL),
        (0.15, -0.3, Verdict.PASS),
        (0.10, 0.05, Verdict.INCONCLUSIVE),
    ],
)
def test_the_borders_of_uplift_and_loss(uplift, above, expected):
    assert judge(pairs([uplift] * 5, above)).verdict is expected


def test_the_lower_bound_counts_and_not_the_mean():
    """Logs 0.2 +- 0.1 (standard deviation of five: 0.1): 0.2 - 2.132 * 0.1 / sqrt(5) = 0.10466, which is +11.0 %."""
    spread = 0.1 / math.sqrt(2.5)  # of -2, -1, 0, 1, 2 the standard deviation is sqrt(2.5)
    found = judge(pairs([math.exp(0.2 + step * spread) - 1 for step in (-2, -1, 0, 1, 2)]))
    assert found.uplift.mean == pytest.approx(math.exp(0.2) - 1)
    assert found.uplift.lower == pytest.approx(math.exp(0.2 - 2.132 * 0.1 / math.sqrt(5)) - 1, abs=1e-6)
    assert found.verdict is Verdict.INCONCLUSIVE
    assert "11.0%" in found.reasons[0]


def test_fewer_than_five_pairs_say_nothing_but_show_their_figures():
    found = judge(pairs([0.5] * 4))
    assert found.verdict is Verdict.INCONCLUSIVE
    assert found.reasons == ("4 whole pairs of 5 that are needed",)
    assert found.uplift.mean == pytest.approx(0.5)
    assert judge([]).verdict is Verdict.INCONCLUSIVE
    assert judge(pairs([0.5])).uplift.lower == -math.inf


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"failure": "hung: not finished after 10 s"}, "seed1: the K-Pool run failed: hung"),
        ({"final_loss": math.nan}, "seed1: a loss of the K-Pool run is not a number"),
        ({"checkpoints": (3.0, math.inf, 1.0)}, "not a number"),
        ({"checkpoints": (3.0, 2.51, 1.0)}, "the training loss is 0.51 above"),
    ],
)
def test_a_kpool_run_that_broke_fails_however_few_pairs_there_are(change, words):
    good, other = pairs([0.5] * 2)
    found = judge([good, replace(other, kpool=replace(other.kpool, **change))])
    assert found.verdict is Verdict.FAIL
    assert words in found.reasons[0]


def test_half_a_nat_above_at_a_checkpoint_has_not_diverged():
    assert judge(pairs([0.2] * 5, checkpoints=(3.5, 2.5, 1.5))).verdict is Verdict.PASS


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sync": None}, "seed0: no record of sync"),
        ({"kpool": None}, "seed0: no record of kpool"),
        ({"sync": replace(SYNC, failure="exploded")}, "seed0: the synchronous run failed: exploded"),
        ({"sync": replace(SYNC, final_loss=math.nan)}, "final loss is not a number"),
        ({"sync": replace(SYNC, tokens_per_s=0.0)}, "too short"),
        ({"sync": replace(SYNC, equal="other")}, "the arms differ: sync other; kpool same"),
    ],
)
def test_a_pair_without_both_arms_does_not_count(change, words):
    first, *rest = pairs([0.5] * 5)
    found = judge([replace(first, **change), *rest])
    assert (found.verdict, found.pairs) == (Verdict.INCONCLUSIVE, 4)
    assert any(words in reason for reason in found.reasons)
    assert judge([replace(first, **change), *pairs([0.5] * 5)]).verdict is Verdict.PASS, "five others are enough"


def test_records_become_pairs_and_what_is_no_record_is_missing(tmp_path, capsys, monkeypatch):
    record = {
        "failure": None,
        "tokens_per_s": 10.0,
        "final_loss": 1.0,
        "checkpoints": [1.0, None],
        "equal": {"seed": 0},
    }
    records.write(tmp_path / "seed0" / "sync.json", record)
    records.write(tmp_path / "seed0" / "kpool.json", record)
    records.write(tmp_path / "seed1" / "sync.json", records.failed("sync", "no room"))
    (tmp_path / "seed1" / "kpool.json").write_text("{")
    first, second = verdict.read(tmp_path)
    assert math.isnan(first.kpool.checkpoints[1]), "a loss that is not a number was written as null"
    assert (second.sync.failure, second.kpool) == ("no room", None)
    monkeypatch.setattr(sys, "argv", ["verdict.py", str(tmp_path)])
    assert verdict.main() == verdict.EXIT_CODES[Verdict.FAIL] == 3
    assert capsys.readouterr().out.endswith("FAIL\n")


def test_throughput_and_checkpoints_leave_the_ends_out():
    """100 steps of 1 s and 10 tokens; the first and the last five, which the window cuts off, take 100 s each."""
    points, now = [], 0.0
    for step in range(100):
        now += 100.0 if step < 5 or step >= 95 else 1.0
        points.append(Point(now, 4, 10, loss=100.0 - step))
    found = records.summarise(points)
    assert found["tokens_per_s"] == pytest.approx(10.0)
    assert (found["samples"], found["tokens"]) == (400, 1000)
    assert found["checkpoints"][0] == pytest.approx(98.0), "the mean of the first five"
    assert found["checkpoints"][-1] == pytest.approx(3.0), "the mean of the last five"
    assert records.summarise(points[:1])["tokens_per_s"] is None


def test_counts_of_metrics_are_each_replicas_own(tmp_path):
    lines = [(0, 2, 20, 3.0), (1, 2, 30, 4.0), (0, 6, 60, 2.0)]
    stamp = "2026-01-01T00:00:0{}.500+00:00"
    rows = [
        {"time": stamp.format(i), "replica": r, "samples": s, "tokens": t, "loss": loss}
        for i, (r, s, t, loss) in enumerate(lines)
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    points = records.points_of(path)
    assert [(point.samples, point.tokens) for point in points] == [(2, 20), (2, 30), (4, 40)]
    assert points[2].time_s - points[0].time_s == pytest.approx(2.0)


def test_both_sources_become_conversations_and_a_missing_column_is_named(tmp_path):
    dolly = tmp_path / "dolly.jsonl"
    rows = [
        {"instruction": "Sum up", "context": "Text", "response": "Short"},
        {"instruction": "", "context": "", "response": "x"},
    ]
    dolly.write_text("".join(json.dumps(row) + "\n" for row in rows))
    alpaca = tmp_path / "alpaca.json"
    alpaca.write_text(json.dumps([{"instruction": "Say hi", "input": "", "output": "Hi"}]))
    (made,), empty = data.convert(data.read(str(dolly)), data.COLUMNS["dolly"])
    assert [message["content"] for message in made["messages"]] == ["Sum up\n\nText", "Short"]
    assert empty == 1
    (made,), _ = data.convert(data.read(str(alpaca)), data.COLUMNS["alpaca"])
    assert [message["content"] for message in made["messages"]] == ["Say hi", "Hi"]
    with pytest.raises(SystemExit, match="row 1 has no column 'context': it has instruction, input, output"):
        data.convert(data.read(str(alpaca)), data.COLUMNS["dolly"])
    with pytest.raises(SystemExit, match="no such file"):
        list(data.read(str(tmp_path / "absent.jsonl")))


def test_the_recipes_are_the_protocol(tmp_path):
    """2,000 steps of 64 samples, rank 16 on q and v, N=8 and K=2; the synchronous arm differs in the pool alone."""
    from tsugi_cli.config.compose import compose, to_tree

    file = tmp_path / "dolly_alpaca.jsonl"
    file.write_text("{}\n")
    pool = compose(["recipe=llama3_8b_lora", f"data={file}"])
    sync = compose([f"recipe={HERE / 'sync.yaml'}", f"data={file}"])
    assert pool.train.micro_batch * pool.topology.replicas == 64
    assert pool.train.max_steps == 2000 * pool.topology.replicas
    assert pool.train.warmup * 2000 == 100
    assert (pool.kpool.n, pool.kpool.k, pool.lora.rank, pool.lora.alpha) == (8, 2, 8 * 16, 8 * 32)
    assert (sync.kpool.n, sync.lora.rank, sync.lora.alpha) == (1, 16, 32)
    assert pool.lora.target_modules == ["q_proj", "v_proj"]
    assert records.equal(to_tree(pool)) == records.equal(to_tree(sync))


def test_the_template_of_the_recipe_gives_a_base_model_turns():
    from tsugi_cli.config.spec import Model
    from tsugi_cli.data.render import Renderer, RenderSettings
    from tsugi_cli.data.rows import Row
    from tsugi_cli.finetune.model import load

    text = yaml.safe_load((ROOT / "recipes" / "llama3_8b_lora.yaml").read_text())["model"]["chat_template"]
    tokenizer = load(Model(source="tiny", path=None, package=None, file=None, dtype="float32", chat_template=text))[1]
    turns = [{"role": "user", "content": "Say hi"}, {"role": "assistant", "content": "Hi"}]
    (sample,) = Renderer(tokenizer, RenderSettings(200)).samples(Row("f", 1, tuple(turns), (None, None))).samples
    assert tokenizer.decode(sample.ids) == "<|start|>### Instruction:\nSay hi\n\n### Response:\nHi<|end|>"
    ((start, stop),) = sample.spans
    assert tokenizer.decode(sample.ids[start:stop]) == "Hi<|end|>"


def stored():
    return sorted((ROOT / "benchmarks" / "results").glob("llama3_8b_*.json"))


@pytest.mark.parametrize("path", stored(), ids=lambda path: path.stem)
def test_a_stored_verdict_is_what_the_rules_make_of_its_runs(path):
    kept = json.loads(path.read_text())
    again = judge(
        [Pair(name, *(verdict.arm(runs[each]) for each in ("sync", "kpool"))) for name, runs in kept["runs"].items()]
    )
    assert (again.verdict, list(again.reasons)) == (kept["verdict"], kept["reasons"])
    assert again.uplift.lower == pytest.approx(kept["uplift"]["lower"])
