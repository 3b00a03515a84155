"""Hostile frames: every message, mutated. For the fuzz tests and benchmarks."""

from __future__ import annotations

import random
from collections.abc import Sequence

from tsugi_kpool.core.checkpoint import part_name
from tsugi_kpool.core.messages import (
    Abort,
    Ack,
    Beat,
    Bye,
    Check,
    Checked,
    Commit,
    Compare,
    Compared,
    Drain,
    Evaluated,
    Failed,
    Fell,
    Finish,
    Fire,
    Generation,
    Hello,
    Lease,
    LeaseRequest,
    Message,
    Reduced,
    Refused,
    Saved,
    Slot,
    SlotRequest,
    Stamps,
    StatusRequest,
    StopRequest,
    StopRun,
    StoreGet,
    StorePut,
    StoreValue,
    Vitals,
    encode,
)
from tsugi_kpool.core.messages.facts import MachineFacts

EDGES = (0x00, 0x7F, 0x80, 0xC0, 0xC1, 0xCA, 0xCB, 0xCF, 0xD3, 0xDD, 0xDF, 0xFF)
"""Bytes with a meaning in MessagePack: small and large numbers, nil, floats, long containers."""


def samples(replica: int, incarnation: str, n: int) -> list[Message]:
    """Return one or two messages of every kind, in the name of this replica.

    Args:
        replica: Whose name to speak in.
        incarnation: The process; the true one is known to nobody but itself and the hub.
        n: Adapters in the pool.
    """
    who = (replica, incarnation)
    beat = Beat(*who, 1, 1, 1, "training", 9, 9, 90, 1.5, 1.6, 0.2, 1.0, 1e-3, (1,) * n, 10, False)
    reduced = Reduced(4, *who, 1, 1, "d" * 64, 0.1, 100, (10, 10), 0.1, 0.2)
    from_members = [
        Hello(1, *who, "host", 1, "c0ffee", "layout", key=b"k" * 32), beat, reduced,
        Vitals(*who, 1.0, MachineFacts()),
        LeaseRequest(*who, 2), Evaluated(5, *who, "base", {"loss_sum": 1.0}, (("a", "b", "c"),)),
        Failed(6, *who, "KeyError"), Bye(7, *who), StorePut(8, replica, "epoch1/0", b"\x00\xff" * 8),
        StoreGet(replica, "epoch1/0"), StatusRequest(), SlotRequest("t"), StopRequest("t"),
        Fell("t", 1, "killed"), Saved(9, *who, 1, False, part_name(replica), 10, "a" * 64), StopRun(),
        Checked(10, *who, 1, 1, 0, 1, (1,)), Compared(11, *who, 1, 1, b"d" * 64, b"s" * 128),
    ]  # fmt: skip
    from_the_hub = [
        Ack(3), Stamps(1.0, 2.0, 3.0), Refused("no"), Generation(1, (0, 1), 0), Fire(1, 2, (0, 1), (0, 1), "count"),
        Commit(1, 1), Abort(1, 1, "late"), Lease(1, 0, 2), StoreValue("k", None), Drain("d"), Finish(3, True),
        Slot("t", 1, "run", "seed: 0", "c0ffee"), Check(1, 1, 0, (1,)), Compare(1, 1),
    ]  # fmt: skip
    return [*from_members, *from_the_hub]


def mutated(draw: random.Random, frames: Sequence[bytes]) -> bytes:
    """Return one of the frames with a few bytes changed, cut, repeated or added, or taken from another one."""
    frame = bytearray(draw.choice(frames))
    for _ in range(draw.randint(0, 3)):
        frame[draw.randrange(len(frame))] = draw.choice(EDGES) if draw.random() < 0.5 else draw.randrange(256)
    way = draw.random()
    if way < 0.2:
        del frame[draw.randrange(len(frame)) :]
    elif way < 0.3:
        frame += draw.choice(frames)[1:]
    elif way < 0.4:
        at = draw.randrange(len(frame))
        frame[at:at] = frame[at:] * draw.randint(1, 4)
    elif way < 0.6:
        frame[0:2] = draw.choice(frames)[0:2]  # the schema version is what most changes hit in vain
    return bytes(frame)


def frames_of(messages: Sequence[Message]) -> list[bytes]:
    """Return the messages as frames, ready to be mutated."""
    return [encode(message) for message in messages]
