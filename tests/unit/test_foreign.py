"""What lies in somebody else's run directory under a known name may be no file: nobody waits for it or follows it."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import pytest

from tests.support import hub_plan
from tests.unit.test_checkpoints import write
from tsugi_cli.config.compose import compose, config_hash, read_earlier, read_resolved, resolved_yaml
from tsugi_cli.launch.resume import resume
from tsugi_cli.record.recorder import Recorder
from tsugi_cli.record.records import Tail
from tsugi_cli.record.resumed import resumed_of
from tsugi_cli.record.run_dir import RunPaths
from tsugi_kpool.checkpoints import Store, verified
from tsugi_kpool.core.checkpoint import ANCHORS, MANIFEST, BadCheckpoint
from tsugi_kpool.errors import ConfigError, LaunchError, MachineError, SidebandError
from tsugi_kpool.foreign import read_plain
from tsugi_kpool.sideband import keys as sideband_keys
from tsugi_kpool.sideband.hub.journal import Journal
from tsugi_kpool.sideband.observer import ask_status

KINDS = {
    "pipe": (os.mkfifo, "a named pipe"),
    "link": (lambda path: path.symlink_to("/etc/hostname"), "a link"),
    "endless": (lambda path: path.symlink_to("/dev/zero"), "a link"),
    "socket": (lambda path: bound(path), "a socket"),
    "folder": (lambda path: path.mkdir(), "directory"),
}


def bound(path: Path) -> None:
    """Leave a socket there, in however deep a folder."""
    here = Path.cwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


@pytest.fixture(params=KINDS)
def swap(request):
    """Puts something else in a file's place; returns the word that must be said of it."""
    make, word = KINDS[request.param]

    def swapped(path: Path) -> str:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        make(path)
        return word

    return swapped


@pytest.fixture
def run(tmp_path) -> RunPaths:
    """A run directory as far as reading goes."""
    paths = RunPaths(tmp_path / "runs" / "20260101-000000-x")
    paths.keys.parent.mkdir(parents=True)
    spec = compose(["model=tiny"])
    paths.config.write_text(resolved_yaml(spec))
    paths.config_hash.write_text(config_hash(spec))
    sideband_keys.save(sideband_keys.RunKeys.generate(), paths.keys)
    write(Store(paths.checkpoints), 12)
    return paths


def test_the_reader_itself_says_what_it_found(tmp_path, swap):
    with pytest.raises(OSError) as caught:
        swap(tmp_path / "x") and read_plain(tmp_path / "x")
    assert "not a file" in str(caught.value) or "not followed" in str(caught.value)


def test_a_device_is_no_file_and_a_long_file_is_not_read():
    with pytest.raises(OSError, match="a character device, not a file"):
        read_plain(Path("/dev/zero"))
    with pytest.raises(OSError, match="more than 100 bytes"):
        read_plain(Path(__file__), 100)


@pytest.mark.parametrize("name", [MANIFEST, ANCHORS])
def test_a_checkpoint_with_something_else_in_it_is_named_and_skipped(run, swap, name):
    word = swap(run.checkpoints / "v000012" / name)
    (skipped,) = Store(run.checkpoints).newest().skipped
    assert word in skipped[1]
    with pytest.raises((OSError, BadCheckpoint), match=word):
        Store(run.root / "other").adopt(run.checkpoints / "v000012")
    assert not list((run.root / "other").glob("v*"))


def test_a_checkpoint_that_is_a_link_is_not_followed(run, tmp_path):
    shutil.move(run.checkpoints / "v000012", tmp_path / "v000012")
    (run.checkpoints / "v000012").symlink_to(tmp_path / "v000012")
    assert Store(run.checkpoints).newest().newest is None
    with pytest.raises(BadCheckpoint, match="a link, which is not followed"):
        verified(run.checkpoints / "v000012")


def test_a_file_that_has_no_end_is_not_hashed(run):
    os.truncate(run.checkpoints / "v000012" / ANCHORS, 1 << 40)
    assert f"{1 << 40} bytes, not" in Store(run.checkpoints).newest().skipped[0][1]


def test_settings_that_are_no_file_are_one_clear_error(run, swap):
    word = swap(run.config)
    for read in (read_resolved, read_earlier):
        with pytest.raises(ConfigError, match=word):
            read(run)
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        resume(str(run.root), [])


def test_a_hash_that_is_no_file_is_one_clear_error(run, swap):
    word = swap(run.config_hash)
    with pytest.raises(LaunchError, match=word):
        read_resolved(run)


def test_what_a_run_began_from_is_read_from_a_file_only(run, swap):
    word = swap(run.resumed)
    with pytest.raises(ConfigError, match=word):
        resumed_of(run)


@pytest.mark.parametrize("text", ["", "null", "[" * 20_000, '{"parent": 1}', "\ud800", '{"manifest": "{}"}'])
def test_what_a_run_began_from_is_refused_when_it_is_not_whole(run, text):
    run.resumed.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ConfigError, match=r"resumed\.json is none of Tsugi's"):
        resumed_of(run)


def test_keys_that_are_no_file_are_one_clear_error(run, swap):
    word = swap(run.keys)
    with pytest.raises(SidebandError, match=word):
        sideband_keys.load(run.keys)


@pytest.mark.parametrize(
    "text", ["[]", "{}", "[" * 20_000, '{"hub_public": 1}', '{"hub_public":"x","hub_secret":"","member_public":"",'
             '"member_secret":""}', "\ud800"]
)  # fmt: skip
def test_keys_that_cannot_be_are_one_clear_error(run, text):
    run.keys.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(SidebandError, match="no usable sideband keys"):
        sideband_keys.load(run.keys)


def test_a_journal_that_is_no_file_is_one_clear_error(run, swap):
    swap(run.journal)
    with pytest.raises(MachineError, match="cannot keep a journal at"):
        Journal(run.journal, lambda told: None).open(hub_plan(), 0.0)


def test_nothing_is_recorded_into_another_kind_of_file(run, swap):
    word = swap(run.metrics)
    with pytest.raises((MachineError, IsADirectoryError), match=word):
        Recorder(run)


def test_keys_without_an_address_are_no_bug_of_ours(run):
    with pytest.raises(SidebandError, match="do not say where the hub listens"):
        ask_status(sideband_keys.load(run.keys), 1.0)


def test_records_of_another_kind_of_file_are_none(run, swap):
    swap(run.metrics)
    assert list(Tail(run.metrics).read()) == []
