"""The hub dies at any moment and another one goes on from its journal: no commit, no sample and no token is lost."""

from __future__ import annotations

import random

import pytest

from tests.support import hub_plan, kpool
from tsugi_kpool.core import records
from tsugi_kpool.core.hub.replay import began, replay
from tsugi_kpool.core.hub.status import fleet_status
from tsugi_kpool.core.journal import FORMAT, BadJournal, Entry, encode_entries, parse
from tsugi_kpool.core.messages import Hello, LeaseRequest
from tsugi_kpool.core.settings import Routing
from tsugi_kpool.sim import (
    Fleet,
    HubCrash,
    LinkModel,
    Slow,
    Speeds,
    check_accounting,
    check_agreement,
    check_refusals,
)
from tsugi_kpool.sim.disk import Disk

ROUGH = LinkModel(latency_s=0.03, jitter=0.8, loss=0.1, duplication=0.1)


def small_plan():
    return hub_plan(samples=12, kpool=kpool(k=2, trigger="count", count=2))


def check_whole_run(fleet: Fleet) -> None:
    """As if no hub had ever died: every sample once, every version in order, one digest each, books that add up."""
    assert fleet.hub.failure is None
    assert all(replica.finished for replica in fleet.replicas), "the run did not end"
    assert check_agreement(fleet) == []
    assert check_accounting(fleet) == []
    assert check_refusals(fleet) == []
    assert sum(replica.progress.samples for replica in fleet.replicas) == fleet.plan.samples
    journal = [entry.record for entry in parse(fleet.hub_host.journal).entries]
    commits = [record for record in journal if isinstance(record, records.RoundCommitted)]
    assert [commit.version for commit in commits] == list(range(1, len(commits) + 1))
    assert {replica.version for replica in fleet.replicas} == {len(commits)}
    reduced = [record.reduced for record in journal if isinstance(record, records.RoundReduced)]
    for commit in commits:
        assert {each.digest for each in reduced if each.round == commit.round} == {commit.digest}


def records_of_a_quiet_run() -> int:
    fleet = Fleet(small_plan(), Speeds((0.1, 0.25)), LinkModel(), seed=0, keep_alive=True)
    fleet.run(100)
    return fleet.hub_host.disk.records


@pytest.mark.parametrize("torn", [False, True])
def test_a_hub_may_die_around_any_record(torn):
    """Between writing it down and sending what it justifies, and while it is being written."""
    count = records_of_a_quiet_run()
    assert count > 30
    for number in range(1, count + 1):
        crash = HubCrash(after_record=number, torn=torn, down_s=2.0)
        fleet = Fleet(small_plan(), Speeds((0.1, 0.25)), LinkModel(), seed=0, crashes=(crash,))
        fleet.run(300)
        assert fleet.hub_host.crashed == 1, f"record {number} was never written"
        check_whole_run(fleet)


@pytest.mark.parametrize("seed", range(200))
def test_a_hub_may_die_at_any_moment_and_again(seed):
    draw = random.Random(seed)
    plan = hub_plan(
        replicas=draw.choice([1, 2, 3, 5]),
        samples=draw.randint(20, 60),
        kpool=kpool(
            k=draw.choice([1, 2, 4]),
            trigger=draw.choice(["count", "convergence"]),
            routing=draw.choice(list(Routing)),
            count=draw.randint(2, 6),
        ),
    )
    speeds = Speeds(tuple(draw.uniform(0.1, 1.0) for _ in range(plan.replicas)))
    trained_s = plan.samples / sum(1 / step_s for step_s in speeds.step_s)
    crashes = tuple(
        HubCrash(at_s=draw.uniform(0.0, longest * trained_s), down_s=draw.uniform(0.0, 10.0))
        for longest in (0.8, 2, 9)
    )
    link, turn_s = draw.choice([LinkModel(), ROUGH]), draw.choice([0.0, 0.01, 0.2])
    fleet = Fleet(plan, speeds, link, seed, crashes=crashes, turn_s=turn_s)
    fleet.run(3000)
    assert fleet.hub_host.crashed
    check_whole_run(fleet)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_hub_that_is_away_for_half_of_what_was_leased_ahead_costs_no_training_time(seed):
    """At any moment before the data end each replica holds about 10 s of its own work, by the pace that the hub has
    seen; only rounds come later."""
    plan = hub_plan(replicas=3, samples=1500, lease_ahead_s=10.0)
    speeds = Speeds((0.1, 0.4, 0.2), jitter=0.2)
    calm_s = Fleet(plan, speeds, LinkModel(), seed=seed, keep_alive=True).run(1000).seconds
    for first_s in (15.3, 21.0, 26.7, 33.0):
        crashes = (HubCrash(at_s=first_s, down_s=5.0), HubCrash(at_s=first_s + 21.0, down_s=5.0))
        fleet = Fleet(plan, speeds, LinkModel(), seed=seed, crashes=crashes)
        ended_s = fleet.run(1000).seconds
        check_whole_run(fleet)
        assert fleet.hub_host.crashed == 2
        assert all(replica.progress.waited_s < 0.2 for replica in fleet.replicas), "but for a moment at the start"
        assert ended_s < calm_s + 2.0


def test_leases_of_seconds_leave_nobody_with_a_long_last_one():
    """A replica four times slower ends within two of its steps of the others, as with single micro-batches."""
    ends = []
    for ahead_s in (0.0, 10.0):
        fleet = Fleet(hub_plan(samples=1000, lease_ahead_s=ahead_s), Speeds((0.1, 0.4)), LinkModel(), seed=0)
        ends.append(fleet.run(1000).seconds)
        check_whole_run(fleet)
    assert ends[1] < ends[0] + 0.8


def test_a_dead_hub_costs_rounds_and_no_step_that_was_leased():
    """Replicas train on what they hold while there is no hub, and buffer it."""
    crash = HubCrash(at_s=10.0, down_s=10.0)
    fleet = Fleet(hub_plan(samples=1000), Speeds((0.5,)), LinkModel(), seed=0, crashes=(crash,))
    fleet.run(10.5)
    version, samples = fleet.replicas[0].version, fleet.replicas[0].progress.samples
    fleet.run(9.0)
    assert fleet.replicas[0].version == version
    assert fleet.replicas[0].progress.samples > samples
    fleet.run(5.0)
    assert fleet.replicas[0].version > version


def test_interrupted_before_the_hub_died_is_interrupted_after():
    fleet = Fleet(hub_plan(samples=1000), Speeds((0.1, 0.4)), LinkModel(), seed=0, crashes=(HubCrash(at_s=5.05),))
    fleet.run(5)
    fleet.interrupt()
    fleet.run(100)
    assert all(replica.finished for replica in fleet.replicas)
    assert fleet.hub.interrupted
    assert check_accounting(fleet) == []


def test_a_hub_that_lacks_a_commit_says_so_and_orders_nothing():
    """Its journal was put back from a copy: going on would give two rounds one number."""
    fleet = Fleet(
        hub_plan(samples=1000), Speeds((0.1,)), LinkModel(), seed=0, crashes=(HubCrash(at_s=20.0, down_s=1.0),)
    )
    fleet.run(5)
    copy = fleet.hub_host.journal.copy()
    fleet.run(15.5)
    version, fleet.hub_host.journal[:] = fleet.replicas[0].version, copy
    assert "the hub's journal lacks records of this run" in fleet.run(20).failure
    assert {replica.version for replica in fleet.replicas} == {version}


def test_a_hub_that_lacks_a_lease_says_so():
    hub = replay(
        hub_plan(), [began(hub_plan()), Entry(1.0, records.Joined(Hello(1, 0, "i", "h", 1, "c0ffee", "l")))], 0
    )
    hub.receive(LeaseRequest(0, "i", 1), 0.0)
    hub.receive(LeaseRequest(0, "i", 3), 0.0)
    assert "replica 0 asks for its data range 3, the hub knows of 1" in hub.failure


@pytest.mark.parametrize("down_s", [2.0, 30.0])
def test_since_when_a_replica_is_slow_outlives_the_hub(down_s):
    """Not counted by any hub's clock, which stands still while there is none: by the replica's own.

    A simulated replica's clock is read at the end of its newest step, so one of 4 s is the error.
    """
    slow = (Slow(1, 4.0, from_s=60.0), Slow(1, 1.0, from_s=250.0))
    crash = HubCrash(at_s=120.0, down_s=down_s)
    plan = hub_plan(replicas=3, samples=1_000_000, lease_ahead_s=60.0, kpool=kpool(count=6, trigger="count"))
    fleet = Fleet(plan, Speeds((1.0,), jitter=0.1, slow=slow), LinkModel(), seed=0, crashes=(crash,))
    fleet.run(119.0)
    before = slowness(fleet, 1)
    fleet.run(down_s + 10.0)
    after = slowness(fleet, 1)
    assert fleet.hub_host.crashed == 1
    began_s = fleet.kernel.now_s - after.since_s
    assert began_s == pytest.approx(119.0 - before.since_s, abs=4.5)
    assert began_s == pytest.approx(60.0, abs=8.0)
    assert after.before_s == before.before_s
    fleet.run(60.0)
    assert slowness(fleet, 1).since_s == pytest.approx(fleet.kernel.now_s - began_s, abs=0.1)
    assert slowness(fleet, 1).factor == pytest.approx(4.0, rel=0.3)
    fleet.run(100.0)
    assert slowness(fleet, 1) is None
    assert [(e.name, e.data["replica"]) for e in fleet.events if e.name in ("slow", "recovered")] == [
        ("slow", 1),
        ("recovered", 1),
    ], "told once, though two hubs have seen it"


def slowness(fleet: Fleet, replica: int):
    return fleet_status(fleet.hub, fleet.kernel.now_s).replicas[replica].slowness


def test_a_hub_that_dies_in_the_first_moments_leaves_work_for_some_steps():
    """Before it knows anybody's pace: a replica then holds a share of what there is, not just one micro-batch."""
    plan = hub_plan(samples=1500, lease_ahead_s=10.0)
    crash = HubCrash(at_s=0.15, down_s=5.0)
    fleet = Fleet(plan, Speeds((0.1, 0.4)), LinkModel(), seed=0, crashes=(crash,))
    fleet.run(4.0)
    done = [replica.progress.samples for replica in fleet.replicas]
    assert done[0] >= 16
    assert done[1] >= 8
    fleet.run(1000)
    check_whole_run(fleet)


def test_landings_that_were_only_noted_die_with_the_hub_and_are_said_again():
    """Nothing follows from a reduced round before the last one: no flush waits for it, and nobody has been told."""
    plan, lost = hub_plan(replicas=3, samples=60, kpool=kpool(k=2, trigger="count", count=2)), 0
    for moment in range(60):
        crash = HubCrash(at_s=2.0 + moment / 40, down_s=1.0)
        fleet = Fleet(plan, Speeds((0.1, 0.25, 0.2)), LinkModel(latency_s=0.02, jitter=1.5), seed=0, crashes=(crash,))
        fleet.run(300)
        check_whole_run(fleet)
        lost += fleet.hub_host.disk.lost
    assert lost, "no hub died between a Reduced and the flush that takes it along"


def test_a_crash_in_a_flush_leaves_what_was_written_before_it():
    struck = [records.Struck(replica) for replica in range(4)]
    for torn in (False, True):
        disk = Disk(small_plan(), (HubCrash(after_record=3, torn=torn),))
        disk.note(struck[:1], 1.0)
        assert disk.flush() is None
        disk.note(struck[1:], 2.0)
        assert disk.flush() is not None
        assert not disk.waiting
        assert [entry.record for entry in disk.reopen()[1:]] == struck[: 2 if torn else 3]


# --- the journal ------------------------------------------------------------------------------------------


def journal_of_a_run() -> bytes:
    fleet = Fleet(small_plan(), Speeds((0.1, 0.25)), LinkModel(), seed=0)
    fleet.run(100)
    return fleet.hub_host.journal


def test_what_is_written_is_read_back():
    evaluated = records.Evaluation(
        records.Evaluated(3, 1, "i", "base", {"loss_sum": float("inf")}, (("a", "b", "c"),))
    )
    stored = records.KeyStored("epoch1/0", bytes(range(256)))
    entries = [Entry(0.5, evaluated), Entry(1.0, stored), Entry(2.0, records.RunFailed("näh\n", None))]
    assert parse(encode_entries(entries)[0]).entries == entries


def test_a_journal_that_ends_anywhere_loses_its_last_line_and_no_more():
    journal = journal_of_a_run()
    lines = journal.splitlines(keepends=True)
    for cut in range(len(lines[0]), len(journal), 7):
        parsed = parse(journal[:cut])
        whole = journal[:cut].count(b"\n")
        assert len(parsed.entries) == whole
        assert parsed.whole_bytes == sum(map(len, lines[:whole]))
        assert replay(small_plan(), parsed.entries, 0.0).failure is None


@pytest.mark.parametrize("what", [b"x", b"\x00", b"\n"])
def test_a_damaged_line_in_the_middle_is_one_error_that_says_where(what):
    journal = bytearray(journal_of_a_run())
    start = journal.index(b"\n") + 1
    journal[start + 20 : start + 21] = what
    with pytest.raises(BadJournal, match=rf"line 2 \(byte {start}\) is damaged, and others follow it"):
        parse(bytes(journal))


def test_no_line_can_be_taken_out_put_in_or_moved():
    """Each line alone would be whole: what tells is that every one covers all that stand before it."""
    lines = journal_of_a_run().splitlines(keepends=True)[:12]
    for at in range(1, len(lines) - 1):
        changed = {
            "taken out": [*lines[:at], *lines[at + 1 :]],
            "twice": [*lines[: at + 1], *lines[at:]],
            "moved": [*lines[:at], lines[at + 1], lines[at], *lines[at + 2 :]],
        }
        for what, journal in changed.items():
            with pytest.raises(BadJournal, match=r"line \d+ \(byte \d+\) does not follow"):
                assert parse(b"".join(journal)) is None, f"line {at + 1} {what}"


def test_a_journal_of_a_format_without_a_chain_is_refused_by_name():
    with pytest.raises(BadJournal, match="it has format 1, which has no chain"):
        parse(b'0a1b2c3d {"at_s":0.0,"record":{"type":"Began"}}\n')
    other = Entry(0.0, records.Began("r", "h", 1, FORMAT + 1))
    with pytest.raises(BadJournal, match=f"it has format {FORMAT + 1}, this version"):
        parse(encode_entries([other])[0])


def test_a_journal_of_another_run_is_refused():
    with pytest.raises(BadJournal, match="not the journal of this run"):
        replay(hub_plan(run="another"), [began(hub_plan())], 0.0)
    with pytest.raises(BadJournal, match="not the journal of this run"):
        replay(hub_plan(), [], 0.0)


def test_records_that_do_not_follow_are_refused():
    entries = [began(hub_plan()), Entry(1.0, records.RoundCommitted(1, 1, "d", ()))]
    with pytest.raises(BadJournal, match="line 2, RoundCommitted, does not follow"):
        replay(hub_plan(), entries, 0.0)


def test_the_books_of_a_hub_that_has_heard_nobody_come_from_the_journal():
    """A machine that dies with its hub is never heard again; what it has trained on is durable all the same."""
    fleet = Fleet(small_plan(), Speeds((0.1, 0.25)), LinkModel(), seed=0)
    fleet.run(100)
    again = fleet_status(replay(fleet.plan, parse(fleet.hub_host.journal).entries, 1000.0), 1000.0)
    assert again.samples_done == fleet.plan.samples
    for row, replica in zip(again.replicas, fleet.replicas, strict=True):
        assert (row.samples, row.tokens) == (replica.progress.samples, replica.progress.tokens)
    assert again.tokens == sum(replica.progress.tokens for replica in fleet.replicas)
