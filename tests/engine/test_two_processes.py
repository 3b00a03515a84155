"""Two real processes, a real gloo group, a real hub with CURVE: anchors agree, everything is committed."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from tests.support import forking, hub_plan, kpool
from tsugi_kpool.core.effects import FleetStage
from tsugi_kpool.core.events import Event, Finished
from tsugi_kpool.core.hub import owner_check
from tsugi_kpool.core.rounds.statements import KEY_BYTES
from tsugi_kpool.core.settings import Mode, Payload, Reduce, Trigger
from tsugi_kpool.sideband.hub.server import HubServer
from tsugi_kpool.sideband.keys import RunKeys
from tsugi_kpool.sideband.signing import verified

JOIN_S = 90


def replica_main(replica: int, keys: RunKeys, settings, result: str) -> None:
    """A training loop of a few lines around the engine; the model is tiny but real."""
    import hashlib
    from functools import partial

    import torch

    from tests.support import tiny_lora
    from tsugi_kpool.engine.engine import KPoolEngine
    from tsugi_kpool.sideband.link import Identity, Link

    torch.set_num_threads(1)
    torch.manual_seed(100 + replica)
    model = tiny_lora(settings).train()
    adamw = partial(torch.optim.AdamW, lr=1e-3)
    engine = KPoolEngine(model, settings, replica, optimizer=adamw, grad_clip=1.0)
    layout = engine.pool.layout(settings.payload)
    link = Link(keys, Identity(replica, "test", 0, "c0ffee", layout), engine.beat, 0.2, 30.0)
    link.start()
    engine.start(link)
    optimizer = adamw(engine.pool.parameters())
    engine.join()
    positions = []
    for lease in engine.leases():
        for position in range(lease.start, lease.stop):
            engine.apply_rounds()
            ids = torch.randint(0, 64, (1, 16))
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            engine.apply(optimizer, 15)
            engine.report(1, 15, 0.01, float(loss.detach()), 1e-3)
            positions.append(position)
    engine.finish()
    ledger = engine.buffer.ledger
    live = engine.pool.read(range(settings.n))
    facts = {
        "positions": positions,
        "digest": hashlib.sha256(live.numpy().tobytes()).hexdigest(),
        "produced": ledger.produced,
        "committed": ledger.committed,
        "discarded": ledger.discarded,
        "version": engine.aggregator.version,
    }
    Path(result).write_text(json.dumps(facts))
    link.bye()
    link.stop()
    engine.stop()


@pytest.mark.parametrize(
    ("replicas", "changes"),
    [
        (2, {"payload": Payload.INT8}),
        (2, {"payload": Payload.FP32, "trigger": Trigger.COUNT, "count": 3, "k": 4}),
        (2, {"payload": Payload.BF16, "eps": 1.0}),
        (1, {}),
        (2, {"mode": Mode.GRADIENT}),
        (2, {"mode": Mode.GRADIENT, "payload": Payload.FP32, "overlap": False, "k": 4, "eps": 1.0}),
        (1, {"mode": Mode.GRADIENT, "payload": Payload.INT4}),
        (2, {"payload": Payload.INT2, "overlap": False, "reduce": Reduce.SCATTER}),
    ],
    ids=[
        "int8",
        "fp32-count-all",
        "bf16-eps",
        "alone",
        "gradient-int8",
        "gradient-no-overlap-eps",
        "gradient-alone",
        "scatter-int2-no-overlap",
    ],
)
def test_replicas_agree_bit_for_bit(tmp_path, monkeypatch, replicas, changes):
    monkeypatch.setattr(owner_check, "CHECK_SHARE", 1.0)  # of two-stage rounds: an owner of each is checked
    settings = kpool(**changes)
    events: list[Event] = []
    finished = threading.Event()

    def tell(told):
        if isinstance(told, Event):
            events.append(told)
        if isinstance(told, Finished):
            finished.set()

    plan = hub_plan(replicas=replicas, samples=60, start_timeout_s=120.0, kpool=settings)
    hub = HubServer(plan, RunKeys.generate(), tell)
    keys = hub.start("127.0.0.1", 0)
    context = forking()
    results = [tmp_path / f"{replica}.json" for replica in range(replicas)]
    processes = [
        context.Process(target=replica_main, args=(replica, keys, settings, str(result)))
        for replica, result in enumerate(results)
    ]
    try:
        for process in processes:
            process.start()
        assert finished.wait(JOIN_S), hub.ask(lambda state: state.failure)
        for process in processes:
            process.join(JOIN_S)
            assert process.exitcode == 0
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
        hub.stop()
    facts = [json.loads(result.read_text()) for result in results]
    assert len({fact["digest"] for fact in facts}) == 1, "live parameters differ after the last round"
    assert len({fact["version"] for fact in facts}) == 1
    assert sorted(position for fact in facts for position in fact["positions"]) == list(range(60))
    assert all(fact["produced"] == fact["committed"] for fact in facts)
    assert not any(sum(fact["discarded"]) for fact in facts)
    assert sum(event.name == "committed" for event in events) == facts[0]["version"] >= 1
    assert hub.ask(lambda state: state.stage) is FleetStage.FINISHED
    assert hub.status().refused == {}
    assert hub.ask(lambda state: {len(each.hello.key) for each in state.members.values()}) == {KEY_BYTES}
    assert hub.ask(lambda state: state.rounds.verify) is verified
