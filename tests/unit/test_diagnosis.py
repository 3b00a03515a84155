"""Why a replica is slow: causes from facts before and after, and how they are told."""

from __future__ import annotations

from datetime import datetime

import pytest
from msgspec.structs import replace

from tsugi_cli.console.events import brief_event, event_text
from tsugi_cli.console.slow import slowness_text
from tsugi_kpool.core.diagnosis import Cause, Diagnosis, LinkFacts, OtherLink, Part, Parts, Symptoms
from tsugi_kpool.core.messages.facts import UNKNOWN, MachineFacts
from tsugi_kpool.core.slow.diagnose import diagnose, mean_facts
from tsugi_kpool.core.slow.slowdown import CAUSE_TURNS, TELL_AFTER_S, WEAKER_TURNS, Slowdown, turns_to_replace

FAST = Parts(step=0.4, data_wait=0.01, sync_wait=0.002, outside=0.003)
CALM = MachineFacts(
    cpu_share=1.0, thread_share=0.95, queue_share=0.01, quota_share=0.0, steal=0.0, busy=0.5, load=0.5,
    memory_free=0.6, major_faults_per_s=0.0, swap_in_bytes_per_s=0.0,
)  # fmt: skip
GPU = MachineFacts(thread_share=0.4, queue_share=0.0, gpu_clock=0.95, gpu_busy=0.99, memory_free=0.6)


def changed(facts: MachineFacts, **changes: object) -> MachineFacts:
    return replace(facts, **changes)


CASES = [
    ("steal", {"step": 1.6}, CALM, {"steal": 0.62}, Cause.COMPUTE, "CPU steal 62 %"),
    ("hog", {"step": 0.8}, CALM, {"queue_share": 0.48, "thread_share": 0.5}, Cause.COMPUTE,
     "waited for a core 48 % of the time, load 0.5 per core"),
    ("slept", {"step": 1.6}, CALM, {"thread_share": 0.24}, Cause.COMPUTE,
     "the training thread slept 74 % of the time"),
    ("quota", {"step": 1.6}, CALM, {"quota_share": 0.7, "thread_share": 0.95}, Cause.COMPUTE,
     "stopped by its CPU quota 70 % of the time"),
    ("heat", {"step": 0.8}, GPU, {"gpu_clock": 0.45, "gpu_throttle": "heat"}, Cause.COMPUTE,
     "GPU throttled: heat"),
    ("clock", {"step": 0.8}, GPU, {"gpu_clock": 0.45}, Cause.COMPUTE, "GPU clock at 45 % of its highest"),
    ("swap", {"step": 3.0}, CALM, {"major_faults_per_s": 800.0, "memory_free": 0.01}, Cause.MEMORY,
     "800 page faults/s from disk"),
    ("data", {"data_wait": 1.2}, CALM, {}, Cause.DATA, "waits 1.20 s (before: 10 ms) for a micro-batch"),
    ("rounds", {"sync_wait": 1.2}, CALM, {}, Cause.ROUNDS, "held up 1.20 s (before: 2 ms) for each step"),
    ("loader", {"outside": 1.2}, CALM, {}, Cause.OUTSIDE, "1.20 s (before: 3 ms) between steps"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("parts", "usual", "now", "cause", "evidence"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_the_cause_is_named_from_facts(parts, usual, now, cause, evidence):
    found = diagnose(Symptoms(FAST, replace(FAST, **parts), usual, changed(usual, **now)))
    assert found.cause is cause
    assert found.evidence[0].startswith(evidence)


def test_on_a_crowded_machine_only_what_grew_with_the_step_is_evidence():
    """Three quarters of the time without a core before and after: the thread slept, the queue is not to blame."""
    crowded = changed(CALM, thread_share=0.25, queue_share=0.74)
    slept = diagnose(
        Symptoms(FAST, replace(FAST, step=1.6), crowded, changed(CALM, thread_share=0.06, queue_share=0.18))
    )
    assert slept.evidence == ("the training thread slept 75 % of the time",)
    queued = diagnose(
        Symptoms(FAST, replace(FAST, step=1.6), crowded, changed(CALM, thread_share=0.06, queue_share=0.93))
    )
    assert queued.evidence == ("waited for a core 93 % of the time, load 0.5 per core (before: 74 %)",)


@pytest.mark.parametrize("part", ["data_wait", "sync_wait"])
def test_a_wait_that_the_link_explains_is_the_links(part):
    links = {"link_before": LinkFacts(rtt_s=0.002), "link_now": LinkFacts(rtt_s=0.8)}
    found = diagnose(Symptoms(FAST, replace(FAST, **{part: 1.2}), CALM, CALM, **links))
    assert found.cause is Cause.LINK
    assert found.evidence == ("round trip 0.80 s (before: 2 ms)",)


@pytest.mark.parametrize("part", ["data_wait", "sync_wait"])
def test_segments_sent_again_speak_for_a_bad_link_and_name_none_by_themselves(part):
    slow, lossy = replace(FAST, **{part: 1.2}), changed(CALM, resent_per_s=40.0)
    links = {"link_before": LinkFacts(rtt_s=0.002), "link_now": LinkFacts(rtt_s=0.8)}
    found = diagnose(Symptoms(FAST, slow, changed(CALM, resent_per_s=1.0), lossy, **links))
    assert found.evidence == ("round trip 0.80 s (before: 2 ms)", "TCP sent 40 segments/s again (before: 1)")
    assert len(diagnose(Symptoms(FAST, slow, lossy, lossy, **links)).evidence) == 1, "it always was so"
    assert diagnose(Symptoms(FAST, slow, CALM, lossy)).cause is not Cause.LINK


def test_rounds_that_take_longer_explain_a_replica_that_is_held_up_but_not_late_data():
    links = {"link_before": LinkFacts(0.002, 0.1), "link_now": LinkFacts(0.002, 0.9)}
    held = diagnose(Symptoms(FAST, replace(FAST, sync_wait=1.2), CALM, CALM, **links))
    assert (held.cause, held.evidence) == (Cause.LINK, ("a round's transfer 0.90 s (before: 0.10 s)",))
    late = diagnose(Symptoms(FAST, replace(FAST, data_wait=1.2), CALM, CALM, **links))
    assert late.cause is Cause.DATA


def test_a_round_that_waits_for_another_replicas_link_names_that_replica():
    """Everybody is held up by a slow transfer; the round trips say whose link it is."""
    links = {"link_before": LinkFacts(0.001, 0.01), "link_now": LinkFacts(0.001, 1.5)}
    held = diagnose(
        Symptoms(FAST, replace(FAST, sync_wait=0.7), CALM, CALM, **links, other=OtherLink(1, 0.001, 0.35))
    )
    assert held.cause is Cause.LINK
    assert held.evidence == (
        "replica 1's round trip 0.35 s (before: 1 ms)",
        "a round's transfer 1.50 s (before: 10 ms)",
    )
    own = {**links, "link_now": LinkFacts(0.3, 1.5)}
    held = diagnose(Symptoms(FAST, replace(FAST, sync_wait=1.2), CALM, CALM, **own, other=OtherLink(1, 0.001, 0.35)))
    assert held.evidence[0] == "round trip 0.30 s (before: 1 ms)"
    quick = {"link_before": LinkFacts(0.001, 0.01), "link_now": LinkFacts(0.001, 0.01)}
    waits = diagnose(
        Symptoms(FAST, replace(FAST, sync_wait=0.7), CALM, CALM, **quick, other=OtherLink(1, 0.001, 0.35))
    )
    assert waits.cause is Cause.ROUNDS, "the rounds themselves are as quick as before"


def test_a_thread_that_is_held_up_does_not_sleep_in_its_step():
    """Half of the time it waits for a round, and the step takes a little longer, too."""
    held = diagnose(Symptoms(FAST, replace(FAST, step=0.9, sync_wait=0.4), CALM, changed(CALM, thread_share=0.6)))
    assert (held.part, held.evidence) == (Part.STEP, ())


def test_a_machine_that_shows_nothing_gives_no_evidence():
    """A device that is simply slower: compute, and nothing is made up."""
    found = diagnose(Symptoms(FAST, replace(FAST, step=1.6), CALM, CALM))
    assert (found.part, found.cause, found.evidence) == (Part.STEP, Cause.COMPUTE, ())
    assert diagnose(Symptoms(FAST, replace(FAST, step=1.6))).evidence == (), "nothing is known at all"


def test_a_training_thread_that_waits_for_a_busy_gpu_does_not_sleep():
    found = diagnose(Symptoms(FAST, replace(FAST, step=1.6), GPU, changed(GPU, thread_share=0.05)))
    assert found.evidence == ()


def test_facts_are_averaged_over_the_samples_that_know_them():
    mean = mean_facts([MachineFacts(steal=0.2), MachineFacts(steal=0.4, gpu_throttle="heat"), MachineFacts()])
    assert mean.steal == pytest.approx(0.3)
    assert mean.gpu_throttle == "heat"
    assert mean.load == UNKNOWN


# --- words ------------------------------------------------------------------------------------------------

FACTS = {
    "factor": 3.8, "since_s": 60.0, "before_s": 0.41, "after_s": 1.56, "part": "step", "cause": "compute",
    "evidence": ["CPU steal 62 %"],
}  # fmt: skip


def test_a_slow_replica_in_words():
    text = "3.8x slow since 12:04:31 (step 0.41 s → 1.56 s); cause: compute (CPU steal 62 %)"
    assert slowness_text(FACTS, datetime(2026, 1, 1, 12, 5, 31)) == text
    event = {"event": "slow", "time": "2026-01-01T12:05:31.000+01:00", "replica": 1, **FACTS}
    assert event_text(event) == f"replica 1: {text}"
    assert brief_event(event) == "12:05:31  replica 1: 3.8x slow, compute: CPU steal 62 %"
    assert brief_event({**event, "part": "round", "evidence": ["round trip 0.35 s"]}).endswith(
        "slow link: round trip 0.35 s"
    )


def test_what_an_event_lacks_or_hides_is_shown_safely():
    assert "?" in event_text({"event": "slow", "time": "never", "cause": "?"})
    hostile = {"event": "slow", **FACTS, "evidence": ["\x1b[31m"], "cause": "\x1b[0m"}
    assert "\x1b" not in event_text(hostile) + brief_event(hostile)


def test_a_status_names_another_cause_when_an_event_does_and_not_before():
    """One turn without a round trip said "rounds" of a slow link."""
    waiting = replace(FAST, sync_wait=1.2)
    link = Diagnosis(Part.SYNC_WAIT, Cause.LINK, ["round trip 0.40 s (before: 1 ms)"])
    rounds = Diagnosis(Part.SYNC_WAIT, Cause.ROUNDS, ["held up 1.20 s (before: 2 ms) for each step"])
    slowdown, now_s = Slowdown(0.0, 0.0, FAST, 0.0), TELL_AFTER_S
    slowdown.update(waiting, 1.0, link)
    assert slowdown.slowness(now_s).cause is Cause.LINK, "before it is told, what is known is shown"
    assert slowdown.worth_telling(now_s)
    for _ in range(WEAKER_TURNS - 1):
        slowdown.update(waiting, 1.0, rounds)
        assert not slowdown.worth_telling(now_s)
        assert slowdown.slowness(now_s).cause is Cause.LINK
        assert slowdown.slowness(now_s).evidence == link.evidence
    slowdown.update(waiting, 1.0, rounds)
    assert slowdown.worth_telling(now_s)
    assert slowdown.slowness(now_s).cause is Cause.ROUNDS


def test_what_explains_a_wait_replaces_the_wait_alone_sooner_than_the_other_way_round():
    """Also where another part of the time has grown: the link does not explain that."""
    wait, step = Part.SYNC_WAIT, Part.STEP
    told = {cause: Diagnosis(part, cause, ()) for part, cause in ((wait, Cause.LINK), (wait, Cause.ROUNDS))}
    assert turns_to_replace(told[Cause.ROUNDS], told[Cause.LINK]) == CAUSE_TURNS
    assert turns_to_replace(told[Cause.LINK], told[Cause.ROUNDS]) == WEAKER_TURNS
    assert turns_to_replace(told[Cause.LINK], Diagnosis(step, Cause.COMPUTE, ())) == CAUSE_TURNS
