"""`tsugi stop`: over the sideband, by who holds the owner's key; and what it says when it cannot."""

from __future__ import annotations

import io
import json
import os
import threading
from dataclasses import replace

import pytest

from tests.support import await_true, hub_plan
from tsugi_cli.launch import stop as command
from tsugi_cli.record.answer import Answer
from tsugi_cli.record.atomic import write_json
from tsugi_cli.record.run_dir import RunPaths
from tsugi_kpool.core.messages import Ack, StopRun
from tsugi_kpool.errors import ConfigError, ExitCode, OverError, SidebandError
from tsugi_kpool.sideband import keys as sideband_keys
from tsugi_kpool.sideband import token
from tsugi_kpool.sideband.hub.server import HubServer
from tsugi_kpool.sideband.keys import Role, RunKeys
from tsugi_kpool.sideband.observer import Observer

ADDRESS = "tcp://127.0.0.1:1"


@pytest.fixture
def paths(tmp_path) -> RunPaths:
    paths = RunPaths(tmp_path)
    paths.keys.parent.mkdir()
    paths.config.touch()
    return paths


@pytest.fixture
def hub(paths):
    server = HubServer(hub_plan(), RunKeys.generate(), lambda told: None)
    server.keys = server.start("127.0.0.1", 0)
    sideband_keys.save(server.keys, paths.keys)
    yield server
    server.stop()


def interrupted(hub: HubServer) -> bool:
    return bool(hub.ask(lambda state: state.interrupted))


def launcher(hub: HubServer, paths: RunPaths, outcome: str) -> threading.Thread:
    """Writes the summary when the hub has been told."""

    def wait() -> None:
        await_true(lambda: interrupted(hub), "the owner's word")
        facts = {"outcome": outcome, "samples": 18, "samples_total": 100, "go_on": "to go on: again"}
        write_json(paths.summary, facts)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@pytest.mark.parametrize(("outcome", "code"), [("interrupted", ExitCode.OK), ("failed", ExitCode.TRAINING)])
def test_it_waits_until_the_run_has_ended_and_says_how(hub, paths, outcome, code):
    thread, out = launcher(hub, paths, outcome), io.StringIO()
    assert command.stop(paths.root, 60.0, Answer(out)) == code
    thread.join()
    assert out.getvalue().splitlines()[1:] == [f"{outcome} at 18 of 100 samples", "to go on: again"]


def test_a_program_is_told_the_same(hub, paths):
    thread, lines = launcher(hub, paths, "interrupted"), io.StringIO()
    command.stop(paths.root, 60.0, Answer(io.StringIO(), lines))
    thread.join()
    first, last = (json.loads(each) for each in lines.getvalue().splitlines())
    assert first == {"stopping": str(paths.root)}
    assert last == {"outcome": "interrupted", "samples": 18, "samples_total": 100, "go_on": "to go on: again"}


def test_only_the_owners_key_stops_a_run(hub):
    """A member's and an observer's do not, with the run's own file or with a token."""
    shown = [token.read(token.write(hub.keys, role), hub.keys.address)[0] for role in (Role.MEMBER, Role.OBSERVER)]
    for times, keys in enumerate((hub.keys, *shown), 1):
        with Observer(keys) as other:
            other.send(StopRun())
            await_true(lambda times=times: hub.status().refused.get("role", 0) == times, "a refusal")
            assert other.receive(0.1) is None, "who may not stop it is not answered"
    assert not interrupted(hub)
    with Observer(hub.keys.as_owner()) as owner:
        assert owner.ask(StopRun(), Ack, 60.0) == Ack(0)
    await_true(lambda: interrupted(hub), "the owner's word")


def test_a_run_that_does_not_end_in_time_is_one_clear_error(hub, paths):
    with pytest.raises(SidebandError, match=r"was told to stop, and has not ended within 0\.2 s"):
        command.stop(paths.root, 0.2, Answer(io.StringIO()))


def test_what_cannot_be_stopped_is_named(paths, monkeypatch, tmp_path):
    def refused(kind: type[Exception], words: str) -> None:
        with pytest.raises(kind, match=words):
            command.stop(paths.root, 1.0, Answer(io.StringIO()))

    refused(SidebandError, "does not listen yet")
    keys = replace(RunKeys.generate(), address=ADDRESS)
    sideband_keys.save(replace(keys, owner_seed=""), paths.keys)
    refused(ConfigError, "of an earlier version and hold no owner's key: press Ctrl-C where it was started")
    sideband_keys.save(keys, paths.keys)
    monkeypatch.setattr(command, "ANSWER_S", 0.2)
    refused(SidebandError, "no hub answers")
    paths.slot.write_text("{}")
    refused(ConfigError, "started on another machine")
    paths.summary.write_text('{"outcome": "finished"}')
    refused(OverError, r"has ended already \(finished\)")
    paths.summary.unlink()
    os.mkfifo(paths.summary)  # in somebody else's directory: nobody waits for it
    refused(OverError, r"has ended already \(ended\)")
    paths.config.unlink()
    refused(ConfigError, "is no run directory")


def test_a_run_that_ends_while_it_is_asked_has_ended_like_any_other(paths, monkeypatch):
    """Its hub answers no more; a moment later the summary is there."""
    sideband_keys.save(replace(RunKeys.generate(), address=ADDRESS), paths.keys)

    def ended(keys: RunKeys) -> None:
        paths.summary.write_text('{"outcome": "interrupted"}')
        raise SidebandError("no hub answers")

    monkeypatch.setattr(command, "Observer", ended)
    with pytest.raises(OverError, match=r"has ended already \(interrupted\)") as found:
        command.stop(paths.root, 1.0, Answer(io.StringIO()))
    assert found.value.exit_code == ExitCode.OVER, "as for `tsugi join`"
