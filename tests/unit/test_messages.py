"""Frames: what is sent arrives; what is hostile is refused with one kind of error."""

from __future__ import annotations

import contextlib
import copy
import json
import random
from pathlib import Path

import msgspec
import pytest

from tsugi_kpool.core.messages import (
    MAX_FRAME_BYTES,
    Ack,
    BadFrame,
    Beat,
    Evaluated,
    Fire,
    Stamps,
    StorePut,
    Vitals,
    decode,
    encode,
)
from tsugi_kpool.core.messages.facts import MachineFacts
from tsugi_kpool.sideband.link import MIN_BEAT_GAP_S

BEAT = Beat(
    replica=1, incarnation="a" * 16, generation=1, version=2, reduced=2, activity="training", steps=9,
    samples=18, tokens=900, busy_s=1.5, trained_s=1.6, step_s=0.2, loss=1.0, lr=1e-3,
    pooled=(1,) * 8, sent_bytes=10**9, drained=False,
)  # fmt: skip
VITALS = Vitals(
    1,
    "a" * 16,
    1e6 / 3,
    MachineFacts(*[1 / 3] * 12, gpu_throttle="power limit, heat", resent_per_s=1 / 3),
    1 / 3,
    1 / 3,
    10**9,
    10**9,
)
SAMPLES = [BEAT, VITALS, Stamps(1.0, 2.0, 3.0), Ack(3),
           Fire(1, 2, (0, 1), (0, 1), "count"), StorePut(1, 0, "key", b"\x00\xff"),
           Evaluated(1, 0, "i", "base", {"loss_sum": 1.0}, (("a", "b", "c"),))]  # fmt: skip


@pytest.mark.parametrize("message", SAMPLES, ids=lambda message: type(message).__name__)
def test_what_is_sent_arrives(message):
    assert decode(encode(message)) == message


RECORDED = json.loads((Path(__file__).parent / "frames_of_version_1.json").read_text())
"""One frame at least of each message, as they were on 2026-11-24: a frame that has been sent once stays readable."""


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda recorded: recorded["message"])
def test_frames_of_earlier_versions_are_read(recorded):
    """Fields may come that they do not have; those that they have mean what they meant."""
    message = decode(bytes.fromhex(recorded["frame"]))
    assert message.__struct_config__.tag == recorded["message"]
    assert _within(_without_what_has_gone(recorded), msgspec.to_builtins(message))


def _without_what_has_gone(recorded):
    """The recorded fields without those that no message has any more: they are skipped, and all others are read."""
    fields = copy.deepcopy(recorded["fields"])
    if recorded["message"] == "FleetStatus":
        assert [row.pop("rank") for row in fields["replicas"]]
    if recorded["message"] == "Landed":
        assert [[facts.pop(), facts.pop()] for facts in fields["adapters"]]  # norm2 and trace stood last
    return fields


def _within(recorded, found):
    """Whether `found` says all that `recorded` says; positions may be added to arrays, names to maps."""
    if isinstance(recorded, dict):
        return all(name in found and _within(value, found[name]) for name, value in recorded.items())
    if isinstance(recorded, list):
        return len(recorded) <= len(found) and all(map(_within, recorded, found))
    return recorded == found


def test_beats_and_vitals_stay_within_the_budget():
    """2 KB/s for each replica, at the most beats that a link sends; the figures are those of a long run."""
    late = msgspec.structs.replace(
        BEAT, generation=300, version=70_000, reduced=70_000, steps=100_000, samples=10**6, tokens=10**9,
        busy_s=1e5 / 3, trained_s=1e5 / 3, step_s=0.123, loss=1 / 3, lr=1e-4 / 3, pooled=(9,) * 8,
        sent_bytes=10**12, worked=10**10, wait_s=1 / 3, sync_wait_s=1 / 3, stepped_s=1e5 / 3,
    )  # fmt: skip
    assert len(encode(late)) / MIN_BEAT_GAP_S + len(encode(VITALS)) <= 2048


@pytest.mark.parametrize(
    "frame", [b"", b"\x01", b"\x02" + encode(Ack(1))[1:], b"\x01" + b"x" * MAX_FRAME_BYTES, b"\x01\x93\x01\x02\x03"]
)
def test_malformed_frames_are_refused(frame):
    with pytest.raises(BadFrame):
        decode(frame)


def test_too_large_a_message_is_refused_by_its_sender():
    with pytest.raises(BadFrame, match="StorePut takes"):
        encode(StorePut(1, 0, "key", b"x" * MAX_FRAME_BYTES))


def test_mutated_frames_never_raise_anything_else():
    """20,000 seeded mutations: every frame is a message or a BadFrame."""
    draw = random.Random(7)
    for _ in range(20_000):
        frame = bytearray(encode(draw.choice(SAMPLES)))
        for _ in range(draw.randint(1, 6)):
            frame[draw.randrange(len(frame))] = draw.randrange(256)
        if draw.random() < 0.3:
            del frame[draw.randrange(len(frame)) :]
        with contextlib.suppress(BadFrame):
            decode(bytes(frame))
