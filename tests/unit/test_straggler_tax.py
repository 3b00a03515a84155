"""The clocks and ratios of benchmarks/straggler_tax: whoever is timed wrongly there makes a wrong headline."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "straggler_tax"))

import clocks
import goal_tables
import verdicts
from scenarios import Scenario

STRAGGLER = Scenario(0.0, slow=4.0, jitter=0.0)
SLOW_LINK = Scenario(5.0, slow=4.0, jitter=0.0)
SHIFTED = clocks.shifted(3)


@pytest.mark.parametrize("clock", [clocks.ddp, clocks.drop_slowest, clocks.balanced, clocks.hivemind, SHIFTED])
@pytest.mark.parametrize("samples", [4, 50, 240])
def test_every_sample_is_trained_once_and_time_goes_on(clock, samples):
    rounds = clock(Scenario(5.0, slow=4.0, jitter=0.5), 4, 0, samples)
    assert sum(sum(each.counts) for each in rounds) == samples
    ends = [each.end for each in rounds]
    assert ends == sorted(ends)
    assert ends[0] > 0


def test_a_fleet_without_noise_takes_what_arithmetic_says():
    """Four replicas, one 4x slower, 26 samples."""
    assert clocks.ddp(STRAGGLER, 4, 0, 24)[-1].end == 24  # 6 steps of 4
    assert clocks.drop_slowest(STRAGGLER, 4, 0, 24)[-1].end == 8  # 8 steps of 1, three samples each
    assert clocks.balanced(STRAGGLER, 4, 0, 26)[-1].end == 8  # two rounds of 4, 13 samples each
    first = clocks.hivemind(STRAGGLER, 4, 0, 100)[0]
    # 3 a unit until the 16th at 5 (the straggler's first came at 4); then it finishes its second, at 8.
    assert (first.end, sum(first.counts)) == (8, 19)


def test_a_shifted_ddp_is_one_step_later_with_other_samples_in_its_steps():
    rounds = SHIFTED(STRAGGLER, 4, 0, 24)
    assert [sum(each.counts) for each in rounds] == [3, 4, 4, 4, 4, 4, 1]
    assert rounds[-1].end == 28


def test_a_variant_without_a_rate_of_its_own_takes_its_methods():
    rates = {"ddp": 4.0, "kpool": 6.0, "kpool_spaced": 3.0}
    found = [verdicts.rate_of(rates, arm) for arm in ("kpool_spaced", "kpool_frugal", "ddp_shift1", "balanced")]
    assert found == [3.0, 6.0, 4.0, 1.0]


def test_what_a_slow_link_adds():
    assert clocks.ddp(SLOW_LINK, 4, 0, 24)[-1].end == 6 * (4 + 5 - 2)  # half of the slowest step hides 2 of 5
    assert clocks.balanced(SLOW_LINK, 4, 0, 39)[-1].end == 12 + 5


def test_the_link_takes_as_long_for_an_all_reduce_as_the_scenario_says():
    replicas, numbers = 8, 1_000_000
    link = SLOW_LINK.link(replicas, numbers)
    a_hop = link.latency_s + 4 * numbers / replicas / link.bandwidth_bytes_per_s
    assert 2 * (replicas - 1) * a_hop == pytest.approx(5.0)


def test_ratios_are_taken_at_ddps_loss_after_half_of_its_samples():
    ddp = {"curve": [[10.0, 10, 3.0], [20.0, 20, 2.0], [30.0, 30, 1.0], [40.0, 40, 0.5]]}
    kpool = {"curve": [[5.0, 20, 3.0], [15.0, 40, 1.0]]}
    assert verdicts.target(ddp) == 2.0
    assert verdicts.faster("kpool", "ddp")({"ddp": ddp, "kpool": kpool}) == 20.0 / 10.0
    never = {"curve": [[5.0, 40, 2.5]]}
    assert verdicts.faster("kpool", "ddp")({"ddp": ddp, "kpool": never}) == 0.0


def test_a_method_is_shown_at_its_rate_and_at_the_one_with_the_lowest_end():
    rates = {"tiny": {"ddp": 4.0, "ddp_end": 6.0}, "tiny/8": {"ddp": 8.0}}
    runs = [
        {"model": "tiny", "replicas": replicas, "arm": "ddp", "lr_scale": scale}
        for replicas in (4, 8)
        for scale in (4.0, 6.0, 8.0)
    ]
    found = [
        (arm, run["replicas"], run["lr_scale"])
        for arm, run in verdicts.chosen({"learning_rates": rates, "runs": runs})
    ]
    assert found == [("ddp", 4, 4.0), ("ddp_end", 4, 6.0), ("ddp_end", 8, 6.0), ("ddp", 8, 8.0)]


def test_goals_are_judged_against_the_rates_at_which_ddp_does_best():
    def run(arm, rate, seed, middle, end):
        facts = {"arm": arm, "replicas": 8, "scenario": "healthy", "seed": seed, "lr_scale": rate}
        curve = [[4.0, 5, middle], [8.0, 10, end]]
        return {**facts, "curve": curve, "goodput": 0.8, "bytes_per_sample": 8.0 if arm == "ddp" else 2.0}

    runs = [run("ddp", 4.0, seed, 2.0, 1.0) for seed in (1, 2)]
    runs += [run("ddp", 6.0, seed, 2.5, 0.9) for seed in (1, 2)]
    runs += [run("ddp", 8.0, 1, 0.1, 0.1)]  # not of all seeds: its mean says nothing beside the others'
    runs += [run("kpool_auto", 4.0, seed, 2.0, 0.99) for seed in (1, 2)]
    runs += [{**run("kpool_auto", 4.0, 1, 9.0, 9.0), "settings": "train.beta1=0.8"}]
    (row,) = goal_tables.goals({"runs": runs})[2:]
    found = dict(zip(goal_tables.goals({"runs": runs})[0], row, strict=True))
    assert (found["seeds"], found["DDP's rates"]) == ("2", "4x, 6x")
    assert found["time to target, DDP / it"].startswith("1.00 ")
    assert found["loss above DDP's at its rate for the target, %"].startswith("-1.0 ± 0.0")
    assert found["at its rate for the end, %"].startswith("+10.0 ± 0.0")
    assert row[-2] == "≤ 0.5 ✓ ✗"
    assert row[-1].startswith("4.0 ")
