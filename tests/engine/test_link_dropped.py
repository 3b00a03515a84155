"""A replica whose link to the hub is cut in the middle of a run trains on, and loses nothing."""

from __future__ import annotations

import json
from dataclasses import replace

from tests import runs
from tests.support import await_true
from tests.unit.test_outage import Cable
from tsugi_cli.launch.hub import serve
from tsugi_cli.record.records import Tail
from tsugi_kpool.sideband import keys as sideband_keys

STEPS, CUT_AT, WITHOUT = 90, 30, 20
WORDS = (
    *runs.ALONE, "data.n_train=200", f"train.max_steps={STEPS}", "fault.slow=[0:2.0]",
    "train.lease_steps=60", "train.lease_ahead_s=30", "topology.silent_timeout_s=60",
)  # fmt: skip


def test_training_goes_on_while_its_link_is_cut(tmp_path, monkeypatch):
    cables: list[Cable] = []
    heard = {"cut": 0, "whole": 0}

    def behind_a_cable(spec, paths, plan, tell):
        hub = serve(spec, paths, plan, tell)
        keys = sideband_keys.load(paths.keys)
        cables.append(Cable(int(keys.address.rpartition(":")[2])))
        sideband_keys.save(replace(keys, address=f"tcp://127.0.0.1:{cables[0].port}"), paths.keys)
        return hub

    def act(number: int) -> bool:
        """The training thread begins a step: were there anything to block it, it would not get here."""
        if number == CUT_AT:
            cables[0].resting, cables[0].whole = False, False
            await_true(lambda: cables[0].resting, "the cut")
        if number == CUT_AT + WITHOUT:
            await_true(lambda: heard["cut"], "a look at the hub meanwhile")
            cables[0].whole = True
        return False

    def look(checkpoints, hub) -> None:
        member = hub.ask(lambda state: state.members.get(0))
        if member is not None:
            heard["whole" if cables[0].whole else "cut"] = member.steps

    monkeypatch.setattr(runs, "serve", behind_a_cable)
    try:
        paths = runs.run(WORDS, tmp_path, monkeypatch, dies=act, turn=look)
    finally:
        for cable in cables:
            cable.close()
    assert 0 < heard["cut"] <= CUT_AT + 3, "the hub has heard nothing of what was trained behind the cut"
    assert heard["whole"] > heard["cut"]
    trained = [record["steps"] for record in Tail(paths.metrics).read()]
    assert trained[-1] == STEPS
    committed = sum(sum(event["weights"]) for event in Tail(paths.events).read() if event["event"] == "committed")
    newest = json.loads(paths.metrics.read_text().splitlines()[-1])
    assert committed == 8 * newest["tokens"], "every token in every adapter, once"
