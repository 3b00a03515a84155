"""20,000 hostile frames against the hub of a training: what is trained is the same to the last bit without them."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
import torch
import zmq

from tests.library import JOIN_S, LOCK_STEP, Pair, batch, config, digest, trained
from tsugi_kpool.sideband import keys as sideband_keys
from tsugi_kpool.sideband.keys import RunKeys
from tsugi_kpool.sideband.sockets import link_socket
from tsugi_kpool.sim.hostile import frames_of, mutated, samples

STEPS, FRAMES = 8, 20_000
EACH = 625
"""Frames over one connection: below what is refused as a flood, unread."""


class Attacker:
    """Somebody who holds a member's key and does not know the members' processes."""

    def __init__(self, keys: RunKeys) -> None:
        self._keys, self._draw = keys, random.Random(0)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._frames = [frames_of(samples(replica, "guessed", 4)) for replica in range(2)]
        self.sent = 0

    def send(self, count: int) -> None:
        """So many frames, in the names of both replicas, each few hundred over a connection of their own."""
        for _ in range(count // EACH):
            dealer = link_socket(self._context, self._keys)
            dealer.setsockopt(zmq.SNDTIMEO, JOIN_S * 1000)
            for number in range(EACH):
                dealer.send(mutated(self._draw, self._frames[number % 2]))
            self.sent += EACH
            dealer.close(linger=JOIN_S * 1000)

    def stop(self) -> None:
        self._context.destroy(linger=0)


def trained_under(keys: Path, frames: int) -> dict:
    """Two replicas with real models, hub and CURVE, whose rounds are forced: one after each step of both."""
    pair = Pair(keys, config(**LOCK_STEP))
    refused: dict[str, int] = {}

    def body(model, handle) -> None:
        optimizer = torch.optim.AdamW(trained(model), lr=1e-2)
        attacker = Attacker(sideband_keys.load(keys)) if handle.replica == 0 and frames else None
        for step in range(STEPS):
            ids = batch(100 * handle.replica + step)
            model(input_ids=ids, labels=ids).loss.backward()
            if attacker is not None:  # while the other replica waits for the round, and while it runs
                attacker.send(frames // STEPS // 2)
            optimizer.step()
            optimizer.zero_grad()
            if attacker is not None:
                attacker.send(frames // STEPS // 2)
            await_version(handle, step + 1)
        if attacker is not None:
            assert attacker.sent == frames
            hub = handle._session._hub._server
            deadline_s = time.monotonic() + JOIN_S
            while heard(hub) < frames // 4 and time.monotonic() < deadline_s:
                time.sleep(0.01)
            refused.update(hub.status().refused)
            attacker.stop()

    assert pair.run(body, body) == [None, None]
    ledgers = [pair.engine(replica).buffer.ledger for replica in range(2)]
    return {
        "digests": [digest(model) for model in pair.models],
        "versions": [pair.engine(replica).aggregator.version for replica in range(2)],
        "produced": [each.produced for each in ledgers],
        "committed": [each.committed for each in ledgers],
        "discarded": [each.discarded for each in ledgers],
        "refused": refused,
    }


def heard(hub) -> int:
    return sum(hub.status().refused.values())


def await_version(handle, version: int) -> None:
    deadline_s = time.monotonic() + JOIN_S
    while handle.version < version:
        assert time.monotonic() < deadline_s
        time.sleep(0.001)


@pytest.mark.usefixtures("hooks_of_two_threads")
@pytest.mark.timeout(180)
def test_what_is_trained_does_not_depend_on_hostile_frames(tmp_path):
    calm, attacked = trained_under(tmp_path / "calm", 0), trained_under(tmp_path / "attacked", FRAMES)
    refused, nothing = attacked.pop("refused"), calm.pop("refused")
    assert nothing == {}
    assert {"malformed", "identity"} <= set(refused)
    assert sum(refused.values()) > FRAMES // 4
    assert attacked == calm
    assert len(set(calm["digests"])) == 1
    assert calm["versions"] == [STEPS, STEPS]
    assert calm["produced"] == calm["committed"]
