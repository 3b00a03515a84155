"""A checkpoint is whole or absent: what is torn, flipped, missing or half written is named, never taken for one."""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tsugi_cli.launch.resume import fitted, resume
from tsugi_cli.record.resumed import Resumed
from tsugi_kpool import durable
from tsugi_kpool.checkpoints import Store, verified
from tsugi_kpool.core.checkpoint import (
    ANCHORS,
    MANIFEST,
    SCHEMA,
    BadCheckpoint,
    Manifest,
    begun_before,
    best,
    decode,
    due,
    encode,
    part_name,
    stand_in,
    superfluous,
)
from tsugi_kpool.errors import ConfigError


def manifest(version: int, files: dict[str, durable.FileFacts] | None = None, **changes) -> Manifest:
    facts = {
        "version": version, "mode": "local", "replicas": 2, "done": ((0, 10), (12, 20)), "samples_total": 40,
        "tokens": 180, "fingerprint": "f" * 64, "config_hash": "c" * 64, "seed": 0, "files": files or {},
        "clean": True, "trained": 18,
    }  # fmt: skip
    return Manifest(**facts | changes)


def write(store: Store, version: int, **changes) -> Path:
    """A checkpoint as a launcher and two replicas make it."""
    scratch = store.open(f"at{version}")
    files = {
        name: durable.write_file(scratch / name, name.encode() * 100 + bytes([version]))
        for name in (ANCHORS, part_name(0), part_name(1))
    }
    return store.finish(f"at{version}", manifest(version, files, **changes)).path


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "checkpoints")


def test_the_newest_one_is_found_with_all_its_facts(store):
    write(store, 3)
    path = write(store, 12)
    found = store.newest()
    assert found.newest is not None
    assert (found.newest.path, found.skipped) == (path, ())
    assert (found.newest.manifest.samples, found.newest.manifest.parts) == (18, [0, 1])
    assert sorted(entry.name for entry in store.root.iterdir()) == ["v000003", "v000012"]


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


DAMAGES = {
    "truncated": (lambda path: os.truncate(path / ANCHORS, 50), "50 bytes"),
    "grown": (lambda path: (path / ANCHORS).write_bytes((path / ANCHORS).read_bytes() + b"x"), "bytes"),
    "flipped": (lambda path: flip(path / part_name(1), 70), "SHA-256"),
    "lost": (lambda path: (path / part_name(0)).unlink(), "cannot be read"),
    "no manifest": (lambda path: (path / MANIFEST).unlink(), f"no {MANIFEST}"),
    "torn manifest": (lambda path: os.truncate(path / MANIFEST, 200), "not whole"),
    "another's manifest": (lambda path: shutil.copy(path.parent / "v000003" / MANIFEST, path / MANIFEST), "v000003"),
    "empty": (lambda path: [each.unlink() for each in path.iterdir()], f"no {MANIFEST}"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_one_is_named_and_skipped_and_the_one_before_wins(store, kind):
    older, newer = write(store, 3), write(store, 12)
    damage, word = DAMAGES[kind]
    damage(newer)
    found = store.newest()
    assert found.newest is not None
    assert found.newest.path == older
    assert [name for name, _ in found.skipped] == ["v000012"]
    assert word in found.skipped[0][1]


def test_no_flipped_bit_of_a_manifest_passes(store):
    path = write(store, 12)
    whole = verified(path).manifest
    data = (path / MANIFEST).read_bytes()
    for at in range(0, len(data)):
        flipped = bytearray(data)
        flipped[at] ^= 1
        try:
            assert decode(bytes(flipped)) == whole, f"byte {at}"
        except BadCheckpoint:
            continue


def test_a_manifest_cannot_lead_to_files_elsewhere(store, tmp_path):
    facts = durable.write_file(tmp_path / "elsewhere", b"secret")
    path = write(store, 12)
    whole = verified(path).manifest
    (path / MANIFEST).write_bytes(encode(manifest(12, whole.files | {"../../elsewhere": facts})))
    with pytest.raises(BadCheckpoint, match="elsewhere"):
        verified(path)


CANNOT_BE = {
    "below zero": ({"done": ((-5, 10),)}, "done has the range [-5, 10), outside of the run's 40 samples"),
    "beyond the run": ({"done": ((0, 41),)}, "done has the range [0, 41), outside"),
    "backwards": ({"done": ((10, 5),)}, "[10, 5), which is empty"),
    "empty range": ({"done": ((5, 5),)}, "[5, 5), which is empty"),
    "overlapping": ({"done": ((0, 10), (9, 12))}, "[9, 12), which does not come after the one before it"),
    "touching": ({"done": ((0, 10), (10, 12))}, "does not come after"),
    "out of order": ({"done": ((12, 20), (0, 10))}, "does not come after"),
    "tokens": ({"tokens": -1}, "tokens must lie in"),
    "replicas": ({"replicas": 10**30}, "replicas must lie in"),
    "trained": ({"trained": -1}, "trained must lie in"),
    "samples": ({"samples_total": 2**60}, "samples_total must lie in"),
    "mode": ({"mode": "\x1b[2J"}, "mode must be one of local, gradient, found '\\x1b[2J'"),
    "hash": ({"fingerprint": "x"}, "fingerprint is no SHA-256"),
}


@pytest.mark.parametrize("kind", CANNOT_BE)
def test_a_manifest_that_says_what_cannot_be_is_refused_by_name(store, kind):
    """Its own hash fits: whoever can write it can make one."""
    path = write(store, 12)
    changes, words = CANNOT_BE[kind]
    (path / MANIFEST).write_bytes(encode(manifest(12, verified(path).manifest.files, **changes)))
    with pytest.raises(BadCheckpoint) as caught:
        verified(path)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("name", "facts", "words"),
    [
        ("../x.safetensors", durable.FileFacts(1, "0" * 64), "a file elsewhere"),
        ("/etc/passwd", durable.FileFacts(1, "0" * 64), "a file elsewhere"),
        ("..", durable.FileFacts(1, "0" * 64), "a file elsewhere"),
        ("", durable.FileFacts(1, "0" * 64), "none of a checkpoint's"),
        (MANIFEST, durable.FileFacts(1, "0" * 64), "none of a checkpoint's"),
        ("replica1.safetensors\n", durable.FileFacts(1, "0" * 64), "none of a checkpoint's"),
        (part_name(7), durable.FileFacts(-1, "0" * 64), "size or SHA-256"),
        (part_name(7), durable.FileFacts(1, "x"), "size or SHA-256"),
    ],
)
def test_a_manifest_names_files_of_a_checkpoint_only(name, facts, words):
    files = {ANCHORS: durable.FileFacts(1, "0" * 64), name: facts}
    with pytest.raises(BadCheckpoint, match=words):
        decode(encode(manifest(12, files)))


def test_a_manifest_without_anchors_is_none():
    with pytest.raises(BadCheckpoint, match=f"names no {ANCHORS}"):
        decode(encode(manifest(12, {})))


def test_a_manifest_of_another_version_of_tsugi_says_so(store):
    path = write(store, 12)
    text = (path / MANIFEST).read_text().replace(f'"schema": {SCHEMA}', f'"schema": {SCHEMA + 1}')
    (path / MANIFEST).write_text(text)
    assert f"schema {SCHEMA + 1}" in store.newest().skipped[0][1]


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_disk_that_fills_up_at_any_moment_leaves_nothing_torn(store, monkeypatch, call):
    """The n-th write or flush fails, for every n until none does; the next success leaves nothing behind."""
    older, real, failed = write(store, 3), getattr(os, call), 0
    for n in range(20):
        left = [n]

        def full(*arguments, left=left):
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*arguments)

        monkeypatch.setattr(os, call, full)
        try:
            write(store, 12 + n)
        except OSError:
            failed += 1
            assert [path.name for path in store.root.glob("v*") if path != older] in ([], [f"v{12 + n:06}"])
        monkeypatch.setattr(os, call, real)
        newest = store.newest()
        assert newest.newest is not None
        assert newest.skipped == ()
        if left[0] >= 0:
            break
        shutil.rmtree(store.root / f"v{12 + n:06}", ignore_errors=True)
    assert failed == {"write": 4, "fsync": 6}[call]
    store.sweep(before=100)
    assert list(store.root.glob(".*")) == []


def test_a_second_one_of_the_same_version_takes_its_place(store):
    write(store, 12)
    write(store, 12, eval_loss=1.5)
    found = store.newest().newest
    assert found is not None
    assert found.manifest.eval_loss == 1.5
    assert [path.name for path in store.root.iterdir()] == ["v000012"]


def test_another_manifest_in_one_step(store):
    checkpoint = verified(write(store, 12))
    store.rewrite(checkpoint, manifest(12, checkpoint.manifest.files, eval_loss=2.0))
    assert verified(checkpoint.path).manifest.eval_loss == 2.0
    assert sorted(path.name for path in checkpoint.path.iterdir()) == sorted([MANIFEST, *checkpoint.manifest.files])


def test_the_newest_and_the_best_are_kept(store):
    for version, loss in ((1, 4.0), (2, 1.0), (3, 2.0), (4, 3.0), (5, 3.5)):
        write(store, version, loss=loss)
    assert store.prune(2) == ["v000001", "v000003"]
    assert sorted(path.name for path in store.root.iterdir()) == ["v000002", "v000004", "v000005"]


def test_evaluation_counts_more_than_training_loss():
    found = {1: manifest(1, loss=0.5), 2: manifest(2, loss=3.0, eval_loss=2.0), 3: manifest(3, loss=1.0)}
    assert best(found) == 2
    assert superfluous(found, 1) == [1]
    assert best({}) is None
    assert best({1: manifest(1)}) is None


def test_a_checkpoint_is_taken_over_without_the_run_it_came_from(store, tmp_path):
    write(store, 12)
    other = Store(tmp_path / "other" / "checkpoints")
    newest = store.newest().newest
    assert newest is not None
    other.adopt(newest.path)
    shutil.rmtree(store.root)
    found = other.newest()
    assert found.newest is not None
    assert found.newest.manifest == newest.manifest


def test_what_is_still_being_written_is_not_swept_away(store):
    for name in ("at3", "at7", "at9", "final"):
        store.open(name)
    store.sweep(before=8, but=("at3",))
    assert sorted(path.name for path in store.root.iterdir()) == [".at3.tmp", ".at9.tmp", ".final.tmp"]
    store.sweep()
    assert list(store.root.iterdir()) == []
    assert begun_before(".v000003.old", None)


def test_small_decisions():
    assert [due(now_s, 100.0, 60.0) for now_s in (100.0, 159.9, 160.0)] == [False, False, True]
    assert not due(1e9, 0.0, 0.0)
    assert [stand_in(replica, [0, 1]) for replica in range(4)] == [0, 1, 0, 1]
    assert stand_in(2, []) is None
    assert stand_in(0, [1]) == 1


WRITER = """
import sys
from pathlib import Path
from tests.unit.test_checkpoints import write
from tsugi_kpool.checkpoints import Store
store, version = Store(Path(sys.argv[1])), int(sys.argv[2])
while True:
    write(store, version)
    store.prune(2)
    print(version, flush=True)
    version += 1
"""


def test_a_writer_that_is_killed_at_any_moment_leaves_whole_ones_only(store):
    """SIGKILL after a random time; whatever is visible verifies, and the newest is not older than what was told."""
    draw, version, unfinished = random.Random(0), 1, 0
    for _ in range(20):
        arguments = [sys.executable, "-c", WRITER, str(store.root), str(version)]
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
        assert process.stdout is not None
        told = int(process.stdout.readline())
        time.sleep(draw.uniform(0.0, 0.02))  # the fault's moment
        process.kill()
        told = max([told, *map(int, process.stdout.read().split())])
        process.wait(60)
        process.stdout.close()
        found = store.newest()
        assert found.skipped == ()
        assert found.newest is not None
        assert found.newest.manifest.version >= told
        for path in store.root.glob("v*"):
            verified(path)
        unfinished += len(list(store.root.glob(".*")))
        version = found.newest.manifest.version + 1
        store.sweep()
    assert unfinished, "no writer was killed in the middle of a checkpoint"


def test_a_shorter_run_says_what_of_the_earlier_one_lies_beyond_its_end():
    resumed = Resumed(Path("run"), "v000003", manifest(3, done=((0, 10), (30, 38))), 0)
    shorter = fitted(resumed, None, 32)
    assert shorter.manifest.samples == 12
    said = "6 samples that it had trained on lie beyond the end of this run: not counted"
    assert said in shorter.notes(2)
    assert not any("beyond" in note for note in fitted(resumed, None, 40).notes(2))
    with pytest.raises(ConfigError, match=r"trained on 18 samples, and this run would have 10: .*train\.max_steps"):
        fitted(resumed, None, 10)


@pytest.mark.parametrize("empty", ["", " "])
def test_an_empty_resume_is_not_the_folder_that_one_stands_in(tmp_path, monkeypatch, empty):
    """A shell's variable that is not set."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="resume= is empty: write resume=last"):
        resume(empty, [])


def test_a_mistyped_last_is_answered_with_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="resume: no such run directory: lst; did you mean last"):
        resume("lst", [])
