"""A machine that joins a resumed run before it has begun has the checkpoint, and begins the fleet from it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import hub_plan, keeps_events
from tests.unit.test_checkpoints import manifest
from tsugi_cli.data.cache import file_digest
from tsugi_cli.launch import fetching, taking_over
from tsugi_cli.launch.fetching import Fetch
from tsugi_cli.launch.preparing import Onlooker
from tsugi_cli.launch.taking_over import RESUMED, resumed_files
from tsugi_cli.record.atomic import write_json
from tsugi_cli.record.resumed import resumed_of
from tsugi_cli.record.run_dir import RunPaths
from tsugi_kpool.checkpoints import Store
from tsugi_kpool.core.checkpoint import ANCHORS, MANIFEST, encode, part_name
from tsugi_kpool.core.messages import Slot, SlotRequest
from tsugi_kpool.core.parcels import PART_BYTES
from tsugi_kpool.durable import write_file
from tsugi_kpool.errors import LaunchError, MachineError
from tsugi_kpool.sideband.hub.server import HubServer
from tsugi_kpool.sideband.keys import RunKeys
from tsugi_kpool.sideband.observer import Observer

pytestmark = pytest.mark.timeout(200)


@pytest.fixture
def home(tmp_path) -> RunPaths:
    """A resumed run's directory on the hub's machine."""
    paths = RunPaths(tmp_path / "home")
    store = Store(paths.checkpoints)
    scratch = store.open("at7")
    contents = {ANCHORS: bytes(range(256)) * 700, part_name(0): b"moments" * 9, part_name(1): b"others"}
    files = {name: write_file(scratch / name, content) for name, content in contents.items()}
    made = store.finish("at7", manifest(7, files))
    facts = {"parent": "/secret/place", "checkpoint": made.path.name, "repeats": 3}
    write_json(paths.resumed, facts | {"manifest": encode(made.manifest).decode()})
    return paths


@pytest.fixture
def hub(home) -> Iterator[HubServer]:
    files = resumed_files(home)
    digest = file_digest(files[RESUMED + MANIFEST])
    plan = hub_plan(replicas=2, joinable=2, config="seed: 0", supervised=False, resumed=digest)
    server = HubServer(plan, RunKeys.generate(), keeps_events([]), data=(b"", files))
    server.keys = server.start("127.0.0.1", 0)
    yield server
    server.stop()


def joined(hub: HubServer, root: Path) -> RunPaths:
    root.mkdir()
    with Observer(hub.keys) as observer:
        slot = observer.ask(SlotRequest("ticket"), Slot, 60.0)
        assert slot.listing == "", "there are no prepared data"
        Fetch(observer, slot, Onlooker(), 60.0).checkpoint(RunPaths(root))
    return RunPaths(root)


def test_it_begins_from_the_same_bytes_and_hears_of_no_place_on_the_hubs_machine(home, hub, tmp_path):
    paths = joined(hub, tmp_path / "there")
    resumed = resumed_of(paths)
    assert resumed is not None
    assert (resumed.parent, resumed.checkpoint, resumed.manifest.version) == (paths.root, "v000007", 7)
    folder, theirs = paths.checkpoints / "v000007", home.checkpoints / "v000007"
    assert sorted(path.name for path in folder.iterdir()) == [ANCHORS, part_name(0)], "its own and no other's"
    assert all((folder / name).read_bytes() == (theirs / name).read_bytes() for name in (ANCHORS, part_name(0)))
    assert (folder / ANCHORS).stat().st_size > 3 * PART_BYTES
    assert Store(paths.checkpoints).newest().newest is None, "it is none that this machine could go on from"


def test_what_is_not_what_the_hub_has_promised_is_refused(home, hub, tmp_path):
    path = home.checkpoints / "v000007" / ANCHORS
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(LaunchError, match=r"anchors\.safetensors of the hub's data is not what the hub has promised"):
        joined(hub, tmp_path / "there")
    assert not RunPaths(tmp_path / "there").resumed.exists()


def test_a_disk_without_room_is_named_before_anything_is_fetched(home, hub, tmp_path, monkeypatch):
    usage = fetching.shutil.disk_usage
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda path: usage(path)._replace(free=10))
    with pytest.raises(MachineError, match=r"the checkpoint needs .* 10 B are free"):
        joined(hub, tmp_path / "there")


def test_a_manifest_that_cannot_be_is_refused():
    with pytest.raises(LaunchError, match="goes on from a checkpoint that cannot be"):
        taking_over.read_manifest(b"{}")


def test_nothing_is_given_in_a_run_from_the_start_or_when_a_newer_one_has_taken_its_place(home, tmp_path):
    assert resumed_files(RunPaths(tmp_path / "another")) == {}
    (home.checkpoints / "v000007" / ANCHORS).unlink()
    assert resumed_files(home) == {}


def test_who_fetches_while_the_fleet_commits_a_round_needs_no_checkpoint_any_more(home, hub, tmp_path, monkeypatch):
    """The hub's machine may delete it as soon as there are newer ones: nobody waits for what has gone."""
    monkeypatch.setattr(fetching, "HOLD_S", 0.0)
    (home.checkpoints / "v000007" / ANCHORS).unlink()
    with Observer(hub.keys) as observer:
        slot = observer.ask(SlotRequest("ticket"), Slot, 60.0)
        assert slot.resumed
        hub.ask(lambda state: setattr(state.rounds, "version", 1))
        paths = RunPaths(tmp_path / "there")
        paths.root.mkdir()
        Fetch(observer, slot, Onlooker(), 60.0).checkpoint(paths)
    assert not paths.resumed.exists()
