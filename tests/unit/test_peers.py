"""benchmarks/peers: the score, the workload that all peers share, and one run of it through the worker."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).resolve().parent.parent.parent / "benchmarks" / "peers"
sys.path.insert(0, str(HERE))
sys.modules.pop("run", None)
import newest  # noqa: E402
import run as peers  # noqa: E402
import scores  # noqa: E402
import worker  # noqa: E402
import workload  # noqa: E402

sys.path.remove(str(HERE))


def record(peer="tsugi", scenario="healthy", lr_scale=1.0, seed=0, curve=((0.0, 5.0), (10.0, 2.0)), failure=None):
    return {
        "peer": peer, "scenario": scenario, "seed": seed, "lr_scale": lr_scale, "failure": failure, "steps": [10, 5],
        "curve": [list(point) for point in curve], "compute_s": {"median": 0.01},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        ([[0.0, 5.0], [10.0, 2.0]], 10.0 * 2.2 / 3.0),
        ([[0.0, 5.0], [4.0, 2.8], [8.0, 2.9]], 4.0),
        ([[0.0, 2.8]], 0.0),
        ([[0.0, 5.0], [10.0, 2.81]], None),
    ],
)
def test_the_target_is_reached_on_a_straight_line_between_snapshots(curve, expected):
    assert scores.time_to(curve, 2.8) == (pytest.approx(expected) if expected is not None else None)


def summary(runs):
    return scores.summarise(runs, peers.PEERS, peers.SCENARIOS)


QUICK, SLOW, NEVER = ((0.0, 5.0), (5.0, 2.0)), ((0.0, 5.0), (50.0, 2.0)), ((0.0, 5.0), (9.0, 4.0))


def test_the_first_seed_chooses_the_rate_and_a_miss_is_worse_than_any_time():
    runs = [record(lr_scale=1.0, curve=NEVER), record(lr_scale=2.0, curve=SLOW)]
    runs += [record(lr_scale=4.0, curve=QUICK, failure="hung")]
    runs += [record(lr_scale=2.0, seed=1, curve=NEVER), record(lr_scale=1.0, seed=1, curve=QUICK)]
    (row,) = summary(runs)
    assert (row["lr_scale"], row["seeds"], row["missed"], row["failed"]) == (2.0, [0, 1], 1, 0)
    assert row["tried"] == [1.0, 2.0, 4.0]
    assert scores.best_scale([record(lr_scale=each, curve=NEVER) for each in (1.0, 2.0)]) == 1.0
    assert scores.best_scale([record(failure="hung")]) is None
    (row,) = summary([record(failure="hung")])
    assert (row["failed"], row["final_loss"]) == (1, [])


def test_every_peer_is_tuned_over_the_same_grid_and_runs_the_other_seeds_at_its_own_rate():
    asked = SimpleNamespace(scenario=["healthy"], seeds=[0, 1, 2], lr_scales=[0.5, 1.0], seconds=70.0)
    for name in peers.PEERS:
        assert [job["lr_scale"] for job in peers.tuning(name, asked)] == [0.5, 1.0]
    assert {job["seed"] for job in peers.tuning("tsugi", asked)} == {0}
    tried = [record(lr_scale=0.5, curve=SLOW), record(lr_scale=1.0, curve=QUICK)]
    rest = peers.measured("tsugi", asked, [*tried, record(lr_scale=4.0, curve=((0.0, 1.0),))])
    assert [(job["seed"], job["lr_scale"]) for job in rest] == [(1, 1.0), (2, 1.0)]
    assert peers.measured("hivemind", asked, tried) == []


def test_runs_that_never_reach_the_target_are_shown_with_their_losses():
    (row,) = summary([record(curve=NEVER)])
    assert (row["to_target_s"], row["missed"], row["final_loss"]) == ([], 1, [4.0])


def test_ranks_draw_different_samples_and_the_same_ones_again():
    first, again, other = (next(workload.batches("tuned", seed)) for seed in ("0:0", "0:0", "0:1"))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == (workload.BATCH, workload.LENGTH)


def test_the_last_replica_is_the_straggler():
    job = workload.Job("x", "straggler4x", 0, 1.0, 1.0)
    assert [job.device_s(rank) for rank in (0, 1)] == [workload.DEVICE_S, 4 * workload.DEVICE_S]
    assert workload.Job("x", "healthy", 0, 1.0, 1.0).device_s(1) == workload.DEVICE_S


def newest_run(peer, scenario, seconds, seed=0, lr_scale=1.0):
    """At 2.0 after this many seconds."""
    curve = ((0.0, 5.0), (seconds, 2.0))
    return record(peer, scenario, lr_scale, seed, curve) | {"notes": {"sent_bytes": None}, "load": 1.0}


def test_the_newest_are_compared_in_pairs_of_a_seed_with_themselves_and_with_ours():
    runs = [newest_run("a", "straggler4x", 9.0, lr_scale=4.0), newest_run("a", "straggler4x", 12.0)]
    runs += [newest_run("a", "healthy", 3.0, lr_scale=4.0), newest_run("a", "healthy", 4.0)]
    runs += [newest_run("a", "straggler4x", 8.0, seed=1, lr_scale=4.0)]
    runs += [newest_run("ours", "straggler4x", 4.5), newest_run("ours", "straggler4x", 2.0, seed=1)]
    found = scores.compared(runs, 2.0, ours="ours", tuned_in="straggler4x", healthy="healthy")
    rows = {(row["peer"], row["scenario"]): row for row in found}
    row = rows["a", "straggler4x"]
    assert (row["lr_scale"], row["tried"], row["to_target_s"]) == (4.0, [1.0, 4.0], [9.0, 8.0])
    assert (row["own_healthy"], row["ours"]) == ([3.0], [2.0, 4.0])
    assert rows["a", "healthy"]["ours"] == []


def test_a_run_that_never_gets_there_or_fails_has_no_ratio():
    runs = [newest_run("a", "healthy", 3.0), record("a", "healthy", seed=1, failure="hung") | {"load": 1.0}]
    runs += [record("a", "straggler4x", curve=NEVER) | {"notes": {}, "load": 1.0}]
    found = scores.compared(runs, 2.0, ours="ours", tuned_in="straggler4x", healthy="healthy")
    healthy, slow = sorted(found, key=lambda row: row["scenario"])
    assert (healthy["failed"], healthy["missed"]) == (1, 0)
    assert (slow["own_healthy"], slow["missed"], slow["final_loss"]) == ([], 1, [4.0])


def test_all_peers_have_their_turn_and_others_together_each_time():
    names = list("abcdefg")
    rounds = [list(newest.turns(names, 3, turn)) for turn in range(3)]
    for each in rounds:
        assert sorted(name for together in each for name in together) == names
    assert len({each[0] for each in rounds}) == 3


def names(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    return {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)} | {
        alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }


def test_every_peer_has_its_loop_and_what_they_share_knows_nothing_of_us():
    for peer in (*peers.PEERS.values(), *newest.PEERS.values()):
        tree = ast.parse((HERE / "others" / f"{peer.module}.py").read_text())
        assert peer.function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    for shared in ("workload.py", "worker.py"):
        assert not any(name.startswith("tsugi") for name in names(HERE / shared))


def test_ranks_on_machines_of_their_own_have_addresses_of_their_own():
    job = workload.Job("x", "slow_link", 0, 1.0, 1.0, machines=(11, 12, 13))
    assert [job.address(rank) for rank in (0, 1)] == ["10.204.0.1", "10.204.0.2"]
    assert workload.Job("x", "healthy", 0, 1.0, 1.0).address(1) == "127.0.0.1"


def test_a_peer_that_needs_another_python_is_named_with_it(tmp_path):
    peer = peers.Peer("x", packages=("y[z]==1",), python="python9.99")
    with pytest.raises(RuntimeError, match=r"it needs python9\.99"):
        peers.interpreter(peer, tmp_path)
    assert [peers.bare(each) for each in ("y[z]==1", "torch>=2.8,<2.14", "numpy")] == ["y", "torch", "numpy"]


def test_a_peer_that_has_no_wheels_for_a_machine_is_named_with_the_reason(monkeypatch):
    monkeypatch.setattr(peers.platform, "system", lambda: "Plan9")
    assert peers.why_not(peers.PEERS["hivemind"]) == "its wheels are for Linux only"
    assert peers.why_not(peers.PEERS["torch_ddp"]) is None


def test_a_rank_that_fails_is_the_runs_reason_and_a_silent_end_is_one_too(tmp_path):
    (tmp_path / "error1").write_text("rank 1: ValueError: no")
    assert worker.wait(tmp_path, [SimpleNamespace(is_alive=lambda: True)], 30.0) == {
        "failure": "rank 1: ValueError: no"
    }
    dead = SimpleNamespace(is_alive=lambda: False, exitcode=-9)
    assert worker.wait(tmp_path / "empty", [dead], 30.0) == {"failure": "rank 0 ended with exit code -9"}
    assert worker.wait(tmp_path / "empty", [dead], 0.0)["failure"].startswith("hung")
    (tmp_path / "result").write_text('{"curve": []}')
    assert worker.wait(tmp_path, [dead], 30.0) == {"failure": None, "curve": []}


@pytest.mark.process
@pytest.mark.timeout(500)
def test_a_run_of_ours_is_scored(tmp_path):
    base = tmp_path / "base"
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**workload.SHAPE, **workload.HEADS)).save_pretrained(base)
    command = [sys.executable, str(HERE / "worker.py"), "tsugi", "train", str(base)]
    job = {"peer": "tsugi", "scenario": "straggler4x", "seed": 0, "lr_scale": 1.0, "seconds": 3.0}
    result = subprocess.run(
        command, input=json.dumps(job), capture_output=True, text=True, timeout=400, check=True, cwd=tmp_path
    )
    done = json.loads(result.stdout)
    assert done["failure"] is None
    assert done["steps"][0] > 0
    assert done["curve"][-1][1] < done["curve"][0][1] < 6.0
