"""Links of `tsugi bench`: what becomes of packets, what may be asked for, what is said. No link is laid here."""

from __future__ import annotations

import pytest

from tsugi_cli.bench.compare import results
from tsugi_cli.bench.links import hosts as links
from tsugi_cli.bench.links import namespaces
from tsugi_cli.bench.links.hosts import fleet, planned, weather
from tsugi_cli.bench.links.namespaces import Namespaces, NoNamespace
from tsugi_cli.bench.links.wire import FAR, NEAR, Lane, Weather
from tsugi_cli.bench.spec import Scenario, read
from tsugi_kpool.errors import ConfigError, ExitCode, MachineError


def scenario(*tokens: str) -> Scenario:
    return read([f"bench.scenario{token}" for token in tokens]).scenario


def fates(lane: Lane, what: Weather, packets: int) -> list[bool]:
    return [lane.due_s(what, 1000, 0.0) is not None for _ in range(packets)]


def test_a_packet_is_late_by_the_delay_and_at_most_the_jitter_and_overtakes_none():
    lane, what = Lane(NEAR, "a"), Weather(delay_s=0.05, jitter_s=0.02)
    sent = [number / 1000 for number in range(500)]
    due = [lane.due_s(what, 1000, at) for at in sent]
    assert due == sorted(due)
    assert all(0.05 <= there - at <= 0.07 for there, at in zip(due, sent, strict=True))
    assert max(due[n] - at for n, at in enumerate(sent)) > 0.06, "jitter is there"
    assert Lane(NEAR, "a").due_s(Weather(), 1000, 3.0) == 3.0


def test_what_gets_lost_is_drawn_from_the_seed():
    what = Weather(loss=0.1)
    lane = Lane(NEAR, "a")
    first = fates(lane, what, 2000)
    assert first == fates(Lane(NEAR, "a"), what, 2000)
    assert first != fates(Lane(NEAR, "b"), what, 2000)
    assert lane.counts == {"carried": sum(first), "lost": 2000 - sum(first)}
    assert 150 < lane.counts["lost"] < 250
    assert all(fates(Lane(NEAR, "a"), Weather(), 100))


def test_a_cut_end_is_deaf_to_its_own_packets_only():
    near, far, cut = Lane(NEAR, "a"), Lane(FAR, "a"), Weather(cut=(FAR,))
    assert fates(near, cut, 3) == [True] * 3
    assert fates(far, cut, 3) == [False] * 3
    assert far.counts == {"cut": 3}


def test_packets_queue_where_the_rate_is_limited():
    lane, what = Lane(NEAR, "a"), Weather(delay_s=0.1, bytes_s=10_000)
    assert [lane.due_s(what, 1000, 0.0) for _ in range(3)] == pytest.approx([0.2, 0.3, 0.4])
    assert lane.due_s(what, 1000, 5.0) == pytest.approx(5.2), "the queue is empty again"


def test_regions_are_far_apart_and_every_value_can_be_changed():
    far = scenario("=cross_region")
    assert weather(far) == Weather(0.04, 0.002, 0.001)
    assert planned(far) == {"mbit_s_set": 20, "rtt_ms_set": 82, "loss_set": 0.001}
    each = scenario("=slow_link", ".delay_ms=10", ".loss=0.1")
    assert planned(each) == {"mbit_s_set": 4, "rtt_ms_set": 40, "loss_set": 0.19}, "two links are on the way"
    assert weather(scenario("=slow_link")) == Weather()


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        (["=slow_link", ".delay_ms=-1"], "bench.scenario.delay_ms must be at least 0, found -1"),
        (["=slow_link", ".loss=1"], "bench.scenario.loss is a share below 1, found 1"),
        (["=straggler4x", ".loss=0.1"], "bench.scenario.loss needs links: bench.scenario.link=each or racks"),
        (["=slow_link", ".delay_m=1"], "bench.scenario.delay_m: no such key; did you mean bench.scenario.delay_ms?"),
    ],
)
def test_what_no_link_can_be_is_refused(tokens, said):
    with pytest.raises(ConfigError) as caught:
        scenario(*tokens)
    assert [problem.replace(".0", "") for problem in caught.value.problems] == [said]


def test_what_was_measured_stands_beside_what_was_asked_for():
    measured = {
        "mbit_s_measured": 15.7, "mbit_s_set": 20.0, "rtt_ms_measured": 82.54, "rtt_ms_set": 82.0,
        "loss_measured": 0.002, "loss_set": 0.001, "between": "replica 0 and replica 3", "made_as": "user namespace",
    }  # fmt: skip
    (line,) = results.link_line(measured)
    assert line == (
        "links: 15.7 Mbit/s of 20, round trip 82.5 ms (delays: 82 ms), 0.20% of packets lost (0.10%), "
        "between replica 0 and replica 3, made as user namespace"
    )
    (longer,) = results.link_line({**measured, "packets_lost": 9, "packets_carried": 12042})
    assert longer == f"{line}, 9 of 12051 lost in all runs"
    assert results.link_line({}) == []


def test_who_may_make_no_namespaces_is_told_so_in_one_line(monkeypatch):
    def refuse(self: Namespaces, name: str, made_by: object) -> None:
        raise NoNamespace("unshare: unshare failed: Operation not permitted")

    monkeypatch.setattr(Namespaces, "_hold", refuse)
    with pytest.raises(MachineError) as caught, fleet(scenario("=slow_link"), 2):
        pass
    assert caught.value.exit_code == ExitCode.ENVIRONMENT
    assert str(caught.value).startswith("bench.scenario.link=each needs network namespaces with shaped links: ")
    assert "Operation not permitted" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_commands_are_named_with_their_package(monkeypatch):
    monkeypatch.setattr(namespaces, "tool", lambda name: None if name == "tc" else name)
    with pytest.raises(MachineError, match=r"no command tc \(iproute2\)$"), fleet(scenario("=slow_link"), 2):
        pass


def test_without_links_nothing_is_made():
    with fleet(scenario("=healthy"), 2) as here:
        assert type(here) is links.Here
        assert (here.measured(), here.counted()) == ({}, {})
