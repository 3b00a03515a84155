"""Root cause of a slow replica: a pure function from facts before and after to a cause with its evidence."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tsugi_kpool.core.diagnosis import Cause, Diagnosis, Part, Parts, Symptoms, compared, seconds_text
from tsugi_kpool.core.messages.facts import UNKNOWN, MachineFacts

from .slow_link import LINK_GROWTH, grown

LEAST_SHARE = 0.1
"""Least share of the time that counts as evidence. Less is everyday noise of shared machines."""
EXPLAINS = 0.3
"""Least share of the slowdown that a fact must explain to be evidence."""
COMPARED = 0.02
SLOW_CLOCK = 0.75
"""A GPU clock below this share of its usual rate is slow."""
BUSY_GPU = 0.5
"""If the GPU is busy for this share of the time, the training thread waits for it and does not sleep."""
FAULTS_PER_S = 20.0
"""Page faults from disk of one process that mean memory pressure; a process whose memory is resident has none."""
SWAP_BYTES_PER_S = 1 << 20
LOW_MEMORY = 0.05
RESENT_PER_S = 5.0
"""TCP retransmissions a second that mean a bad link; a sound one loses a segment now and then."""
RESENT_GROWTH = 3.0
LINK_SHARE = 0.3
"""A round trip that takes this share of a wait explains it: data and rounds are asked for over the link."""


def diagnose(symptoms: Symptoms) -> Diagnosis:
    """Return the diagnosis. The part of the time that grew most says which facts to look at; they say why."""
    part = symptoms.after.largest_growth(symptoms.before)
    cause, evidence = _LOOK[part](symptoms)
    return Diagnosis(part, cause, tuple(evidence))


def mean_facts(samples: Sequence[MachineFacts]) -> MachineFacts:
    """Return the mean of every fact over the samples that know it; of throttling, the newest text."""
    known: dict[str, float | str] = {}
    for name in MachineFacts.__struct_fields__:
        values = [getattr(sample, name) for sample in samples]
        if name == "gpu_throttle":
            known[name] = next((words for words in reversed(values) if words), "")
        else:
            numbers = [value for value in values if value != UNKNOWN]
            known[name] = sum(numbers) / len(numbers) if numbers else UNKNOWN
    return MachineFacts(**known)  # type: ignore[arg-type]


def _step(symptoms: Symptoms) -> tuple[Cause, list[str]]:
    pressure = _memory_pressure(symptoms.now)
    if pressure:
        return Cause.MEMORY, pressure
    return Cause.COMPUTE, [*_gpu(symptoms.usual, symptoms.now), *_thread(symptoms)]


def _memory_pressure(now: MachineFacts) -> list[str]:
    """Return the evidence of memory pressure: pages read from disk. Little free memory alone is none, but supports
    it."""
    found = []
    if now.major_faults_per_s >= FAULTS_PER_S:
        found.append(f"{now.major_faults_per_s:.0f} page faults/s from disk")
    if now.swap_in_bytes_per_s >= SWAP_BYTES_PER_S:
        found.append(f"{now.swap_in_bytes_per_s / 1e6:.0f} MB/s read back from swap")
    if found and 0 <= now.memory_free < LOW_MEMORY:
        found.append(f"{_percent(now.memory_free)} of the memory is free")
    return found


def _gpu(usual: MachineFacts, now: MachineFacts) -> list[str]:
    found = [f"GPU throttled: {now.gpu_throttle}"] if now.gpu_throttle and not usual.gpu_throttle else []
    expected = usual.gpu_clock if usual.gpu_clock > 0 else 1.0
    if 0 <= now.gpu_clock < SLOW_CLOCK * expected:
        found.append(f"GPU clock at {_percent(now.gpu_clock)} of its highest")
    return found


def _thread(symptoms: Symptoms) -> list[str]:
    """Return what kept the training thread from computing, the fact that explains most of the growth first."""
    now, usual = symptoms.now, symptoms.usual
    load = f", load {now.load:.1f} per core" if now.load >= 0 else ""
    shares = (
        ("CPU steal {}", usual.steal, now.steal),
        ("stopped by its CPU quota {} of the time", usual.quota_share, now.quota_share),
        ("waited for a core {} of the time" + load, usual.queue_share, now.queue_share),
        ("the training thread slept {} of the time", _asleep(usual, symptoms.before), _asleep(now, symptoms.after)),
    )
    found = []
    for words, before, share in shares:
        explained = _explained(symptoms, before, share)
        if share >= LEAST_SHARE and explained >= EXPLAINS:
            compared = f" (before: {_percent(before)})" if before >= COMPARED else ""
            found.append((explained, words.format(_percent(share)) + compared))
    return [text for _, text in sorted(found, reverse=True)]


def _explained(symptoms: Symptoms, before: float, now: float) -> float:
    """Return how much of a step's growth a share of the time explains: its seconds now minus its seconds before, over
    the growth.

    A share alone says little: on a crowded machine a thread waits for a core most of the time, fast or slow.
    """
    growth_s = symptoms.after.total - symptoms.before.total
    in_share_s = now * symptoms.after.total - max(0.0, before) * symptoms.before.total
    return in_share_s / growth_s if growth_s > 0 else 0.0


def _asleep(facts: MachineFacts, parts: Parts) -> float:
    """Return the share of the time in which the training thread slept: it neither ran, nor queued for a core, nor
    waited for data or rounds. UNKNOWN while the GPU is busy, because then it waits for that."""
    if facts.thread_share < 0 or facts.gpu_busy >= BUSY_GPU:
        return UNKNOWN
    waited = (parts.data_wait + parts.sync_wait) / parts.total if parts.total > 0 else 0.0
    return max(0.0, 1.0 - facts.thread_share - max(0.0, facts.queue_share) - waited)


def _data_wait(symptoms: Symptoms) -> tuple[Cause, list[str]]:
    slow_link = _round_trip(symptoms, symptoms.after.data_wait)
    if slow_link:
        return Cause.LINK, [*slow_link, *resent(symptoms.usual, symptoms.now)]
    return Cause.DATA, [f"waits {compared(symptoms.before.data_wait, symptoms.after.data_wait)} for a micro-batch"]


def _sync_wait(symptoms: Symptoms) -> tuple[Cause, list[str]]:
    before, now = symptoms.link_before, symptoms.link_now
    transfer = _longer("a round's transfer", before.transfer_s, now.transfer_s, symptoms.after.sync_wait)
    slow_link = _round_trip(symptoms, symptoms.after.sync_wait) or (_whose(symptoms) if transfer else [])
    if slow_link or transfer:
        return Cause.LINK, [*slow_link, *transfer, *resent(symptoms.usual, symptoms.now)]
    return Cause.ROUNDS, [f"held up {compared(symptoms.before.sync_wait, symptoms.after.sync_wait)} for each step"]


def resent(usual: MachineFacts, now: MachineFacts) -> list[str]:
    """Return evidence of TCP retransmissions. They support a bad link, but do not name one by themselves."""
    before, count = max(0.0, usual.resent_per_s), now.resent_per_s
    if count < max(RESENT_PER_S, RESENT_GROWTH * before):
        return []
    return [f"TCP sent {count:.0f} segments/s again (before: {before:.0f})"]


def _round_trip(symptoms: Symptoms, waited_s: float) -> list[str]:
    return _longer("round trip", symptoms.link_before.rtt_s, symptoms.link_now.rtt_s, waited_s)


def _whose(symptoms: Symptoms) -> list[str]:
    """Return whose link makes a round's transfer slow: that of the member whose round trip has grown. All members see
    the slow transfer."""
    before_s, now_s, other = symptoms.link_before.rtt_s, symptoms.link_now.rtt_s, symptoms.other
    if before_s is not None and now_s is not None and grown(before_s, now_s):
        return [f"round trip {compared(before_s, now_s)}"]
    return [f"replica {other.replica}'s round trip {compared(other.before_s, other.now_s)}"] if other else []


def _longer(words: str, before_s: float | None, now_s: float | None, waited_s: float) -> list[str]:
    """Return evidence about a duration of the link: it is much longer than before, and long enough to explain the
    wait."""
    if now_s is None or now_s < LINK_SHARE * waited_s:
        return []
    if before_s is None:
        return [f"{words} {seconds_text(now_s)}"]
    return [f"{words} {compared(before_s, now_s)}"] if now_s >= LINK_GROWTH * before_s else []


def _outside(symptoms: Symptoms) -> tuple[Cause, list[str]]:
    grown = compared(symptoms.before.outside, symptoms.after.outside)
    return Cause.OUTSIDE, [f"{grown} between steps, in the training loop's own code or its data loader"]


_LOOK: dict[Part, Callable[[Symptoms], tuple[Cause, list[str]]]] = {
    Part.STEP: _step,
    Part.DATA_WAIT: _data_wait,
    Part.SYNC_WAIT: _sync_wait,
    Part.OUTSIDE: _outside,
}


def _percent(share: float) -> str:
    return f"{share * 100:.0f} %"
