"""A hub that is hostile or broken, at `tsugi join`: what it says works, is dropped, or is one line that names it."""

from __future__ import annotations

import contextlib
import io
import random
import string
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.test_messages import BEAT
from tsugi_cli.config.bounded_yaml import MAX_CHARS, BadYaml, load
from tsugi_cli.config.compose import compose, config_hash, resolved_yaml
from tsugi_cli.console import view
from tsugi_cli.console.history import History
from tsugi_cli.console.plain import PlainConsole
from tsugi_cli.launch.guest import MOST_WORKERS, check_slot, localised
from tsugi_kpool.core.messages import FleetStatus, ReplicaStatus, Slot, Stamps, encode
from tsugi_kpool.core.replica.clock import ClockFilter, Exchange
from tsugi_kpool.errors import ConfigError, LaunchError, TsugiError
from tsugi_kpool.sideband.incoming import read
from tsugi_kpool.sideband.keys import RunKeys
from tsugi_kpool.sideband.link import Identity, Link
from tsugi_kpool.sim.hostile import frames_of, mutated, samples

SPEC = compose(["model=tiny"])
CONFIG = resolved_yaml(SPEC)
LINES = CONFIG.splitlines()
BUDGET = settings(max_examples=300, deadline=None)


def with_line(old: str, new: str) -> str:
    assert CONFIG.count(f"{old}\n") == 1
    return CONFIG.replace(f"{old}\n", f"{new}\n")


# --- YAML -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "a: &x [1]\nb: *x",
        "a: &a [l]\nb: &b [*a, *a]\nc: &c [*b, *b]",
        "<<: {a: 1}",
        "a: 1\na: 2",
        "[" * MAX_CHARS,
        "- " * (MAX_CHARS // 2),
        "[" + "1," * 30_000 + "]",
        "a" * (MAX_CHARS + 1),
        r'"\ud800"',
        r'"\UFFFFFFFF"',
        "9" * 5000,
        "!!python/object/apply:os.system [id]",
        "!!binary aGk=",
        "2026-99-99",
        "!!int ''",
        "--- 1\n--- 2",
        "a: b: c",
        "\x00",
        "{",
    ],
    ids=lambda text: text[:16],
)
def test_yaml_that_is_more_than_plain_values_is_one_short_line(text):
    with pytest.raises(BadYaml) as caught:
        load(text)
    assert len(str(caught.value)) < 200
    assert str(caught.value).isprintable()


YAML_BITS = st.lists(
    st.sampled_from(
        [*"[]{}:,-?!&*|>#%@`'\"\\ \n\t", ": ", "\n- ", "!!", "<<", "null", "~", ".nan", "1e9", "0x1", "\\ud800"]
    ),
    max_size=40,
).map("".join)


@BUDGET
@given(st.one_of(st.text(max_size=200), YAML_BITS))
def test_any_text_is_values_or_bad_yaml(text):
    with contextlib.suppress(BadYaml):
        load(text)


def test_the_configuration_of_a_run_is_read_as_it_was_written():
    """Every shipped recipe's, and texts that YAML likes to misread."""
    awkward = replace(SPEC, name="5e51234", about="a\u0085b: #\u2028 null\n  - x", seed=2**32 - 1)
    for spec in (SPEC, compose([]), compose(["recipe=smollm2_docstrings"]), awkward):
        assert localised(resolved_yaml(spec), []) == spec


# --- configuration ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("null", "expected a section with name"),
        ("", "expected a section with name"),
        ("[1, 2]", "expected a section"),
        ("topology: null", "is missing"),
        (with_line("  replicas: 2", "  replicas: .nan"), "topology.replicas"),
        (with_line("  replicas: 2", f"  replicas: {'9' * 4000}"), "topology.replicas"),
        (with_line("  replicas: 2", "  replicas: -7"), "topology.replicas"),
        (with_line("  workers: 1", f"  workers: {MOST_WORKERS + 1}"), "topology.workers"),
        (with_line("  grace_s: 30.0", "  grace_s: 1.0e+300"), "train.grace_s"),
        (with_line("  lr: 0.0015", "  lr: .inf"), "train.lr"),
        (with_line("name: smollm2_tools", "name: ../../etc"), "name becomes part"),
        (with_line("name: smollm2_tools", "nmae: smollm2_tools"), "nmae: no such key"),
        ("[" * 1000, "cannot be read"),
        (f"x: &x 1\n{CONFIG}", "cannot be read"),
    ],
)
def test_a_bad_configuration_is_the_hubs_fault_in_one_line(config, says):
    with pytest.raises(LaunchError, match="the hub's configuration") as caught:
        localised(config, [])
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("package", "file"),
    [
        ("--index-url=http://evil", "a/b.gguf"),
        ("x @ https://evil/x.whl", "a/b.gguf"),
        ("../../home", "a/b.gguf"),
        ("./x.whl", "a/b.gguf"),
        ("x==1", "/etc/passwd"),
        ("x==1", "a/../../../etc/x.gguf"),
        ("x==1", "b.gguf"),
    ],
)
def test_a_hub_names_packages_of_the_index_and_files_inside_them_only(package, file):
    gguf = resolved_yaml(replace(SPEC, model=replace(SPEC.model, source="gguf_package", package=package, file=file)))
    with pytest.raises(LaunchError, match=r"model\.(package|file) must be"):
        localised(gguf, [])


def test_a_hub_names_no_file_of_this_machine(tmp_path, monkeypatch):
    """What it calls its files is shown, never opened; the user says which ones are meant here."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.jsonl").write_text("{}\n")
    named = resolved_yaml(compose(["model=tiny", "data=mine.jsonl"]))
    with pytest.raises(ConfigError, match=r"data.path: the run's hub calls its file 'mine.jsonl'"):
        localised(named, [])
    assert localised(named, ["data.path=mine.jsonl"]).data.path == "mine.jsonl"
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "org" / "name" / "config.json").write_text("{}")
    for hubs in (str(tmp_path), "../x", "~/x", "a/b/c", "./org/name", "org/name"):
        (tmp_path / "x").mkdir(exist_ok=True)
        config = resolved_yaml(SPEC).replace("source: tiny\n  path: null", f"source: hf\n  path: {hubs}")
        with pytest.raises(ConfigError, match=r"model\.path: "):
            localised(config, [])
    assert localised(config, ["model.path=./org/name"]).model.path == "./org/name"


def test_folders_addresses_and_keys_of_the_hubs_machine_are_dropped():
    config = with_line("runs_dir: runs", "runs_dir: /etc")
    config = config.replace("  address: null\n", "  address: 10.0.0.1\n").replace(
        "  keys: null\n", "  keys: /etc/shadow\n"
    )
    spec = localised(config, ["topology.address=127.0.0.1"])
    assert (spec.runs_dir, spec.topology.address, spec.sideband.keys) == ("runs", "127.0.0.1", None)


@pytest.mark.parametrize(
    "override", ["data.path={", "kpool.k=1", "data.path", "topology.address=[1]", "runs_dir=&a b"]
)
def test_an_override_that_is_none_is_the_users_mistake(override):
    with pytest.raises(ConfigError):
        localised(CONFIG, [override])


VALUES = st.one_of(
    st.sampled_from(
        ["null", "[]", "{}", "true", "-7", "0", "1e400", ".nan", "9" * 400, '"\\ud800"', '"\\0"', "~", "*x", "&x 1",
         "!!set {}", "[[[[[[[[[]]]]]]]]]", "{a: {b: {}}}", "0o7", "2026-01-01", "'x'", "-", "?", "|"]
    ),
    st.text(string.printable, max_size=20),
)  # fmt: skip
LINE = st.integers(0, len(LINES) - 1)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(LINE, st.sampled_from(["value", "drop", "repeat", "whole", "indent"]), VALUES), max_size=4))
def test_any_configuration_works_or_is_an_error_of_ours(changes):
    lines = list(LINES)
    for at, way, value in changes:
        key = lines[at].partition(":")[0]
        lines[at] = {
            "value": f"{key}: {value}", "drop": "", "repeat": f"{lines[at]}\n{lines[at]}", "whole": value,
            "indent": f" {lines[at]}",
        }[way]  # fmt: skip
    with contextlib.suppress(TsugiError):
        resolved_yaml(localised("\n".join(lines), [])).encode()


@settings(max_examples=80, deadline=None)
@given(st.one_of(st.text(max_size=100), YAML_BITS), st.one_of(st.text(max_size=60), YAML_BITS))
def test_any_text_and_any_override_works_or_is_an_error_of_ours(config, override):
    for text, words in ((config, []), (CONFIG, [override]), (CONFIG, [f"data.path={override}"])):
        try:
            localised(text, words)
        except TsugiError:
            continue


# --- places -----------------------------------------------------------------------------------------------


def place(**changes: object) -> Slot:
    values = {"ticket": "t", "replica": 1, "run": "20261130-1", "config": CONFIG, "config_hash": config_hash(SPEC)}
    return Slot(**{**values, **changes})


def test_a_place_in_the_run_is_taken():
    check_slot(place(), "t", localised(CONFIG, []))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"replica": -7}, "replica -7"),
        ({"replica": 2}, "replica 2"),
        ({"replica": 2**60}, "0 to 1"),
        ({"ticket": "u"}, "somebody else"),
        ({"run": "../../etc"}, "no run's name"),
        ({"run": "\x1b]0;owned\x07"}, "no run's name"),
        ({"run": "x" * 300}, "no run's name"),
        ({"run": ""}, "no run's name"),
        ({"config_hash": "c0ffee"}, "not the one that its hash"),
        ({"config_hash": "\x1b" * 64}, "not the one that its hash"),
    ],
)
def test_a_place_that_cannot_be_is_the_hubs_fault(changes, says):
    with pytest.raises(LaunchError, match="hub") as caught:
        check_slot(place(**changes), "t", localised(CONFIG, []))
    assert says in str(caught.value)
    assert str(caught.value).isprintable()


# --- frames -----------------------------------------------------------------------------------------------


def deliver(frames: list[bytes]) -> int:
    """Give frames to a replica's link, as its line does; how many were messages."""
    link, clock, through = (
        Link(RunKeys.none(), Identity(0, "h", 1, "c", "l"), lambda incarnation: BEAT, 0.2, 1.0),
        ClockFilter(),
        0,
    )
    for frame in frames:
        message = read([frame])
        if message is None:
            continue
        through += 1
        if isinstance(message, Stamps):
            clock.take(Exchange(message.echo_s, message.received_s, message.sent_s, 5.0))
            clock.best(), clock.usual_rtt_s()
        else:
            link.deliver(message)
    return through


def test_20_000_mutated_frames_of_a_hub_harm_no_link():
    draw, frames = random.Random(3), frames_of(samples(0, "i", 4))
    assert 1000 < deliver([mutated(draw, frames) for _ in range(20_000)]) < 20_000


@BUDGET
@given(st.lists(st.binary(max_size=64).map(lambda tail: b"\x01" + tail), max_size=8))
def test_any_bytes_are_dropped_or_delivered(frames):
    deliver(frames)


def test_two_parts_and_numbers_that_cannot_be_are_dropped():
    good = encode(Stamps(1.0, 2.0, 3.0))
    assert read([good]) == Stamps(1.0, 2.0, 3.0)
    assert read([good, good]) is None
    assert read([]) is None
    assert read([encode(Stamps(1.0, float("nan"), 3.0))]) is None
    assert read([encode(place(replica=-7))]) is None


TEXT = st.text(max_size=12)
COUNT = st.one_of(st.integers(0, 9), st.integers(0, 2**53))
REAL = st.floats(allow_nan=False, allow_infinity=False)
ROWS = st.lists(
    st.builds(
        ReplicaStatus, replica=COUNT, host=TEXT, state=TEXT, steps=COUNT, samples=COUNT,
        tokens=COUNT, tokens_per_s=REAL, step_s=REAL, lag_s=REAL, lag_steps=COUNT, fill=REAL, share=REAL,
        sent_bytes=COUNT, silent_s=REAL, drift=st.none() | REAL, rtt_s=st.none() | REAL,
    ),
    max_size=3,
).map(tuple)  # fmt: skip
STATUSES = st.builds(
    FleetStatus, run=TEXT, stage=TEXT | st.sampled_from(["gathering", "training"]), expected=COUNT, generation=COUNT,
    version=COUNT, elapsed_s=REAL, samples_done=COUNT, samples_total=COUNT, eta_s=st.none() | REAL, tokens=COUNT,
    tokens_per_s=REAL, goodput=st.none() | REAL, loss=st.none() | REAL, firing=st.lists(COUNT, max_size=3).map(tuple),
    rounds=st.dictionaries(TEXT, COUNT, max_size=2), aborted=COUNT, pool_text=TEXT, trigger_text=TEXT, replicas=ROWS,
    joined=COUNT, health=TEXT, health_reasons=st.lists(TEXT, max_size=2).map(tuple), pooled=COUNT, target=REAL,
    variance=st.none() | REAL, eps=st.none() | REAL, paused_s=st.none() | REAL,
    refused=st.dictionaries(TEXT, COUNT, max_size=2),
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.lists(STATUSES, max_size=3))
def test_any_status_can_be_shown(statuses):
    history, out = History(), io.StringIO()
    console = PlainConsole(out)
    for status in statuses:
        assert read([encode(status)]) == status
        console.show(status)
        history.observe(status)
        view.render(status, history, 80, 24)
    assert "\x1b" not in out.getvalue()
