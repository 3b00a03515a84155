"""benchmarks/gpu: what is checked, within which time, and that a part which fails does not end the others."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from gpu.check import PATIENCE, TESTS, memory_of, parts_of, within  # noqa: E402
from gpu.parts import MOST_S, Part, run_all  # noqa: E402

WRITES = "import pathlib, sys; pathlib.Path(sys.argv[1], 'figures.json').write_text('{\"speed\": 3}')"

LOGS = "import pathlib, sys; pathlib.Path(sys.argv[1], 'worker0.log').write_text('out of memory')"


def part(name: str, code: str, **changes: object) -> Part:
    values = {"limit_s": 60.0, "command": lambda own: [sys.executable, "-c", code, str(own)], **changes}
    return Part(name, **values)


def test_a_part_that_fails_hangs_or_cannot_run_tells_why_and_the_next_one_runs(tmp_path):
    hangs = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])"
    found = run_all(
        [
            part("fails", f"{LOGS}; raise SystemExit('no such kernel')"),
            part("hangs", hangs, limit_s=1.0),
            part("silent", "pass"),
            part("missing", "", command=lambda _: ["/nowhere/program"]),
            part("refused", "", why_not=lambda: "no such package"),
            part("works", WRITES),
        ],
        tmp_path,
    )
    assert "exit code 1: no such kernel" in found["fails"]["why_not"]
    assert "worker0.log: out of memory" in found["fails"]["why_not"], "the folder with the logs is removed"
    assert "not finished after 1 s" in found["hangs"]["why_not"]
    assert "figures.json" in found["silent"]["why_not"]
    assert "/nowhere/program" in found["missing"]["why_not"]
    assert found["refused"] == {"why_not": "no such package"}
    assert found["works"]["figures"] == {"speed": 3}
    assert found["works"]["command"].startswith("python -c ")
    assert str(tmp_path) not in str(found["works"]["command"]), "a result file names no folder of this machine"


def test_a_check_has_eight_minutes():
    assert MOST_S == 8 * 60


def test_no_part_begins_when_the_time_is_over(tmp_path):
    found = run_all([part("late", WRITES)], tmp_path, most_s=0.0)
    assert found["late"] == {"why_not": "the parts before it took all the time"}


def test_the_whole_check_takes_at_most_eight_minutes_and_its_programs_exist(tmp_path):
    for cpu in (False, True):
        parts = parts_of(cpu, tmp_path)
        assert sum(each.limit_s for each in parts) <= MOST_S * (PATIENCE if cpu else 1)
        assert len({each.name for each in parts}) == len(parts)
        for each in parts:
            words = each.command(tmp_path / each.name)
            assert Path(words[1]).exists() or importlib.util.find_spec(words[2]) is not None, words
            assert not (cpu and any("cuda" in word for word in words[2:])) or each.name == "tests"
    assert all((ROOT / each).exists() for each in TESTS)


def test_what_needs_a_model_that_could_not_be_made_says_so(tmp_path):
    reasons = {each.name: each.why_not() for each in parts_of(cpu=False, folder=tmp_path)}
    assert reasons["sharing"] == reasons["straggler"] == "there is no middle model"
    assert reasons["bf16"] == "there is no large model"
    assert reasons["device"] is reasons["tests"] is None


@pytest.mark.parametrize(("q1", "q3", "said"), [(0.99, 1.005, True), (1.02, 1.03, False), (0.8, 1.2, None)])
def test_pairs_that_are_far_apart_say_nothing_of_the_goal(q1, q3, said):
    assert within(1.01, {"q1": q1, "median": 1.0, "q3": q3}) is said


def test_memory_is_the_peak_where_it_is_known():
    outcomes = {
        "bf16": {"figures": {"held_over_dry_run": 0.9, "peak_over_dry_run": 1.4}},
        "bits": {"why_not": "none"},
    }
    assert memory_of(outcomes) == {"bf16": 1.4}
