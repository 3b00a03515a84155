"""`tsugi bench --simulate`: what is asked for, what is modelled, what is told."""

from __future__ import annotations

import io
import json
import signal
import threading
from dataclasses import replace

import pytest

from tsugi_cli.bench.simulate import command as simulate
from tsugi_cli.bench.simulate import modelled, scale
from tsugi_cli.bench.simulate.request import read
from tsugi_cli.bench.simulate.scale import limits
from tsugi_cli.bench.spec import scenarios
from tsugi_cli.record.answer import Answer
from tsugi_cli.signals import Signals
from tsugi_kpool.core.messages import Fire, Reduced
from tsugi_kpool.errors import ConfigError, ExitCode

SMALL = ("adapter_values=1000", "minutes=1", "model=tiny")


def mistakes(*tokens: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read([*SMALL, *tokens])
    return caught.value.problems


def run(*tokens: str) -> dict:
    out = io.StringIO()
    assert simulate.simulate([*SMALL, *tokens], False, True, Answer(io.StringIO(), out)) == ExitCode.OK
    return json.loads(out.getvalue())


# What is asked for


def test_the_shortest_words_are_enough():
    assert read([*SMALL, "replicas=1000"]).simulation.replicas == [1000]
    assert read([*SMALL, "bench.replicas=[10,1000]"]).simulation.replicas == [10, 1000]
    assert read([*SMALL, "topology.replicas=7"]).simulation.replicas == [7]
    asked = read([*SMALL, "scenario=cross_region", "kpool.k=4", "churn=0.01", "bench.scenario.delay_ms=20"])
    assert (asked.simulation.name, asked.simulation.churn, asked.simulation.scenario.delay_ms) == (
        "cross_region",
        0.01,
        20,
    )
    assert asked.spec.kpool.k == 4


@pytest.mark.parametrize("name", scenarios())
def test_every_scenario_can_be_simulated(name):
    assert read([*SMALL, f"scenario={name}"]).simulation.name == name


@pytest.mark.parametrize(
    ("token", "problem"),
    [
        ("replcas=9", "replcas: no such key; did you mean replicas?"),
        ("bench.chrn=9", "bench.chrn: no such key; did you mean bench.churn?"),
        ("kpool.kk=2", "kpool.kk: no such key; did you mean kpool.k?"),
        ("replicas=1", "bench.replicas: a fleet has 2 to 100000 replicas, found 1"),
        ("churn=2", "bench.churn is a share: 0 to 1, found 2.0"),
        ("minutes=0", "bench.minutes must be positive, found 0.0"),
        ("scenario=cross_regoin", "bench.scenario=cross_regoin: no such scenario; did you mean cross_region?"),
        ("fault.data_wait=[0:1]", "fault.data_wait=['0:1']: not simulated"),
        ("fault.slow=[0:2@30]", "fault.slow=0:2@30: a simulation knows moments in seconds only, such as @20s"),
    ],
)
def test_a_mistake_is_named_with_what_may_have_been_meant(token, problem):
    assert any(found.startswith(problem) for found in mistakes(token))


def test_all_mistakes_are_told_at_once():
    assert len(mistakes("replcas=9", "churn=2", "kpool.kk=2")) == 3


# What is modelled


def test_slow_replicas_are_the_last_or_one_in_so_many_and_those_that_are_named():
    asked = read([*SMALL, "replicas=20", "device_step_s=2"])
    assert modelled.step_s(modelled.speeds(asked.simulation, asked.spec, 20), 20) == [2.0] * 19 + [8.0]
    tenth = read([*SMALL, "slow_share=0.1"])
    assert list(modelled.slow_replicas(tenth.simulation, 20)) == [0, 10]
    named = read([*SMALL, "scenario=healthy", "fault.step_s=[0:3]", "fault.slow=[1:2,2:5@20s]", "replicas=4"])
    moves = modelled.speeds(named.simulation, named.spec, 4)
    assert modelled.step_s(moves, 4) == [3.0, 4.0, 2.0, 2.0]
    assert [(slow.factor, slow.from_s) for slow in moves.changes(2)] == [(5.0, 20.0)]


def test_lock_step_is_as_slow_as_the_slowest_and_slower_with_jitter():
    steady = modelled.speeds(*_of("replicas=4"), 4)
    assert modelled.lockstep(steady, 4, 0) == pytest.approx(1 / 3.25)
    jitter = modelled.speeds(*_of("replicas=4", "scenario=jitter"), 4)
    assert modelled.lockstep(jitter, 4, 0) < modelled.lockstep(jitter, 2, 0) < 0.8


def _of(*tokens: str):
    asked = read([*SMALL, *tokens])
    return asked.simulation, asked.spec


def test_links_are_those_of_the_scenario():
    each = modelled.link(*_of("scenario=slow_link"), 1000)
    assert each.bandwidth_bytes_per_s == pytest.approx(5e5)
    late = modelled.link(*_of("scenario=slow_link", "bench.scenario.delay_ms=20"), 1000)
    assert late.latency_s == pytest.approx(0.04025), "two of them are on every way"
    assert each.far is None
    regions = modelled.link(*_of("scenario=cross_region"), 1000)
    assert regions.far is not None
    assert regions.far.latency_s == pytest.approx(0.04 + 0.002 / 2 + 0.00025)
    assert regions.bandwidth_bytes_per_s == pytest.approx(1.25e9)


# What is told


def test_figures_are_those_of_the_settings_and_the_seed():
    words = ("replicas=[4,12]", "churn=0.5", "back_s=10", "minutes=2")
    first, again, other = run(*words), run(*words), run(*words, "seed=5")
    for found in (first, again, other):
        for fleet in found["fleets"]:
            fleet.pop("cpu_s")
    assert first == again
    assert first["fleets"] != other["fleets"]
    assert [fleet["replicas"] for fleet in first["fleets"]] == [4, 12]
    assert first["fleets"][1]["deaths"] > 0


def test_nobody_pays_for_a_straggler_and_the_dead_cost_what_they_are_away():
    (alive,) = run("replicas=20", "minutes=3")["fleets"]
    (dying,) = run("replicas=20", "minutes=3", "churn=0.3", "back_s=30")["fleets"]
    assert alive["goodput"] > 0.97 > 0.4 > alive["lockstep"]
    assert alive["aborted"] == alive["trained_again"] == 0
    away = dying["deaths"] * 30 / (20 * 180)
    assert dying["goodput"] == pytest.approx(1 - away, abs=0.06)
    assert dying["generations"] > dying["deaths"] > 3


def test_a_hub_hears_every_step_and_order():
    asked = read([*SMALL, "replicas=10"])
    fleet = modelled.fleet(asked.simulation, asked.spec, 10, 1000)
    report = fleet.run(60.0)
    found = scale.measure(fleet, report, asked.simulation, asked.spec, 1000, 0.0)
    assert fleet.channel.kinds[Reduced] >= 10 * report.versions
    assert fleet.channel.kinds[Fire] >= 10 * report.versions
    beats = sum(report.samples) / asked.spec.train.micro_batch / 60
    idle = 10 / asked.spec.sideband.beat_s
    assert found.frames_up_per_s > beats + idle + 10
    assert found.hub_cpu == pytest.approx(found.frames_up_per_s * 67e-6)


def test_limits_are_said_where_they_are_passed_and_only_there():
    asked = read([*SMALL, "replicas=10"])
    fleet = modelled.fleet(asked.simulation, asked.spec, 10, 1000)
    small = scale.measure(fleet, fleet.run(60.0), asked.simulation, asked.spec, 1000, 0.0)
    assert limits(small, asked.spec) == []
    large = replace(
        small, replicas=1000, address_bytes=8154, form_cpu_s=67.0, hub_cpu=1.2, round_s=50.0,
        replica_bytes_per_s=3000.0, too_large=("Generation",), failure="no quorum",
    )  # fmt: skip
    assert len(limits(large, asked.spec)) == 7
    assert limits(replace(small, rounds=0), asked.spec) == ["no round has been reduced"]


def test_a_table_and_a_dry_run_are_written():
    out = io.StringIO()
    assert simulate.simulate([*SMALL, "replicas=4"], False, True, Answer(out)) == ExitCode.OK
    assert "goodput" in out.getvalue()
    out = io.StringIO()
    assert simulate.simulate([*SMALL, "replicas=90000"], True, True, Answer(out)) == ExitCode.OK
    assert "nothing was simulated" in out.getvalue()


def test_ctrl_c_ends_it_cleanly(monkeypatch):
    """The signal comes in the middle of a turn of a fleet that would take hours."""
    turned = threading.Event()
    original = simulate.turns

    def turns(*arguments):
        for done_s in original(*arguments):
            if not turned.is_set():
                turned.set()
                signal.raise_signal(signal.SIGINT)
            yield done_s

    monkeypatch.setattr(simulate, "turns", turns)
    out = io.StringIO()
    code = simulate.simulate([*SMALL, "replicas=50", "minutes=100000"], False, True, Answer(out))
    assert code == ExitCode.INTERRUPTED == 130
    assert "stopped" in out.getvalue()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_is_left_is_told_by_the_pace_so_far():
    asked = read([*SMALL, "replicas=[10,30]"])
    now = [0.0]
    watch = simulate.Watch(io.StringIO(), True, asked, lambda: now[0])
    watch.begin(10)
    assert watch._said(0.0, 0.0) == ""
    now[0] = 4.0  # 10 replicas for 60 s are a quarter of all; half of that is done
    assert watch._said(10 * 30.0, 10 * 30.0) == "about 0:28 left"


def test_nothing_is_collected_while_a_fleet_lives():
    import gc

    with simulate.uncollected():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_signals_are_given_back():
    with Signals():
        pass
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
