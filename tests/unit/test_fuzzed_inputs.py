"""Whatever a file or a command line holds: it works, or one clear error says what is wrong; no bug of ours."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.support import hub_plan
from tests.unit.test_checkpoints import manifest
from tsugi_cli.bench import spec as bench_spec
from tsugi_cli.bench.simulate import request as simulation
from tsugi_cli.config import documents, overrides
from tsugi_cli.config.compose import build_spec, compose, config_hash, read_earlier, resolved_yaml, to_tree
from tsugi_cli.config.schema import leaf_types
from tsugi_cli.config.spec import RunSpec
from tsugi_cli.data.sources import BadRow, open_rows
from tsugi_cli.launch.plan import make_plan
from tsugi_cli.record.resumed import resumed_of
from tsugi_cli.record.run_dir import RunPaths
from tsugi_kpool.core.checkpoint import ANCHORS, BadCheckpoint, FileFacts, Manifest, decode, encode
from tsugi_kpool.core.hub.replay import began, replay
from tsugi_kpool.core.journal import BadJournal, Entry, encode_entries, parse
from tsugi_kpool.core.messages import Fire
from tsugi_kpool.core.records import AnyRecord, RoundCommitted, RoundFired
from tsugi_kpool.errors import TsugiError

PATHS = RunPaths(Path("/runs/x"))
GOOD = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
fuzzed = settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=100)

texts = st.text(st.one_of(st.sampled_from("\\'\"${}[](),:=#~&*!|>%@ \n\t\0-_."), st.characters()), max_size=12)
numbers = st.one_of(
    st.integers(-3, 10**6),
    st.integers(),
    st.sampled_from([2**31, 2**53, 2**63 - 1, 2**63, 10**30, 10**400]),
    st.floats(),
)
plain = st.one_of(st.none(), st.booleans(), numbers, texts)
values = st.recursive(
    plain,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=8,
)
deep = st.integers(20, 60_000).flatmap(
    lambda depth: st.sampled_from(["[" * depth, "[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth])
)


T = TypeVar("T")


def outcome(act: Callable[[], T]) -> tuple[T | None, str]:
    """(what it gives, "") or (None, the words of an error that says what is wrong); all else is a bug of ours."""
    try:
        return act(), ""
    except (TsugiError, BadCheckpoint, BadJournal) as error:
        said = str(error)
    assert len(said) < 5_000
    return None, said


# Data

DATA = compose(["model=tiny"]).data  # composed once: each time takes 0.2 s
messages = st.fixed_dictionaries(
    {},
    optional={"role": st.one_of(st.sampled_from(["user", "assistant", "system", "tool"]), values), "content": values},
)
records = st.one_of(
    values,
    st.fixed_dictionaries({"messages": st.one_of(values, st.lists(messages, max_size=3))}),
    st.fixed_dictionaries({"prompt": values, "completion": values}),
    st.just(GOOD),
)
lines = st.one_of(
    records.map(json.dumps).map(str.encode),
    deep.map(str.encode),
    st.binary(max_size=40),
    st.tuples(st.just(json.dumps(GOOD).encode()), st.integers(0, 60), st.binary(max_size=3)).map(
        lambda each: each[0][: each[1]] + each[2] + each[0][each[1] :]
    ),
    st.just(b'{"prompt": "\\ud83d", "completion": "x"}'),
)


@fuzzed
@given(st.lists(lines, max_size=5))
def test_data_is_read_or_refused_by_line(tmp_path_factory, given_lines):
    path = tmp_path_factory.getbasetemp() / "fuzzed.jsonl"
    path.write_bytes(b"\n".join(given_lines))
    data = replace(DATA, builder=None, path=str(path))
    found, refused = outcome(lambda: [row for shard in open_rows(data).whole for row in shard])
    assert not refused or str(path) in refused
    for row in found or ():
        if isinstance(row, BadRow):
            assert row.reason
            continue
        assert row.text or row.messages[-1]["role"] == "assistant"
        json.dumps(row.messages, ensure_ascii=False).encode()


# Settings


@pytest.fixture(scope="module")
def spec() -> RunSpec:
    return compose(["model=tiny"])


def usable(found: RunSpec) -> None:
    """What a run does with its settings before it starts anything."""
    plan = make_plan(found, PATHS, 100)
    msgspec.msgpack.encode(plan.hub.config)
    assert len(config_hash(found)) == 64
    assert build_spec(yaml.safe_load(resolved_yaml(found))) == found
    found.kpool.notes()
    assert 0 < plan.hub.samples < 2**63


@fuzzed
@given(st.lists(st.tuples(st.sampled_from(sorted(leaf_types())), values), min_size=1, max_size=4))
def test_any_values_make_a_usable_spec_or_are_refused(spec, changes):
    tree = to_tree(spec)
    for key, value in changes:
        section, _, name = key.rpartition(".")
        node = tree
        for part in section.split(".") if section else ():
            node = node[part]
        node[name] = copy.deepcopy(value)
    found, _ = outcome(lambda: build_spec(tree))
    if found is not None:
        usable(found)


@fuzzed
@given(st.sampled_from(sorted(leaf_types())), st.one_of(numbers, st.text("0123456789:@.e-s,[]", max_size=12)))
def test_any_number_anywhere_makes_a_usable_spec_or_is_refused(spec, key, value):
    test_any_values_make_a_usable_spec_or_are_refused.hypothesis.inner_test(spec, [(key, value)])
    test_any_values_make_a_usable_spec_or_are_refused.hypothesis.inner_test(spec, [(key, [str(value)])])


@fuzzed
@given(values)
def test_any_tree_is_refused(tree):
    with pytest.raises(TsugiError):
        build_spec(tree)


keys = st.one_of(
    st.sampled_from(sorted([*leaf_types(), *overrides.group_options(), "recipe", "kpool", "train.checkpoint"])), texts
)
words = st.one_of(
    st.tuples(keys, st.one_of(texts, numbers.map(str), values.map(repr), deep)).map("=".join),
    texts,
    deep,
)


@fuzzed
@given(st.lists(words, max_size=6))
def test_any_words_are_understood_or_refused(tokens):
    request = overrides.read(tokens)
    request.hydra_overrides()
    request.outdone()
    assert all(isinstance(text, str) for text in request.problems)


@settings(fuzzed, max_examples=8)
@given(st.lists(words.filter(lambda word: "\0" not in word), min_size=1, max_size=6))
def test_any_command_line_composes_or_is_refused(tokens):
    try:
        found = compose(tokens)
    except TsugiError:
        return
    usable(found)


PIECES = [
    "a: &a [x, x]\n",
    "b: &b [*a, *a, *a]\n",
    "- *a\n",
    "&a [*a]",
    "  ",
    "a: 1\n",
    "? ",
    "<<: *a\n",
    "!!int",
    "2020-99-99",
]
yamls = st.one_of(
    values.map(lambda value: yaml.safe_dump(value) if _dumps(value) else ""),
    texts,
    deep,
    st.lists(st.sampled_from(PIECES)).map("".join),
    st.just("a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 13))),
    st.binary(max_size=40).map(lambda data: data.decode("latin-1")),
)  # fmt: skip


def _dumps(value: Any) -> bool:
    with contextlib.suppress(Exception):
        yaml.safe_dump(value)
        return True
    return False


@pytest.mark.parametrize("text", ["!!int", "!!float ''", "!!bool x", "!!timestamp x", "!!set {a}", "? !!int"])
def test_a_tag_that_its_value_cannot_be_is_refused(text):
    """PyYAML lets errors of five kinds out of its constructors."""
    with contextlib.suppress(TsugiError):
        documents.load(text, "x.yaml")


@fuzzed
@given(yamls)
def test_any_text_is_a_bounded_tree_or_refused(text):
    with contextlib.suppress(TsugiError):
        assert len(repr(documents.load(text, "x.yaml"))) < 100 * documents.MOST_NODES


@fuzzed
@given(st.one_of(yamls.map(lambda text: text.encode("utf-8", "surrogatepass")), st.binary(max_size=40)))
def test_any_bytes_as_the_settings_of_a_run_are_refused(tmp_path_factory, data):
    paths = RunPaths(tmp_path_factory.getbasetemp() / "fuzzed")
    paths.root.mkdir(exist_ok=True)
    paths.config.write_bytes(data)
    paths.config_hash.write_bytes(data[:64])
    with pytest.raises(TsugiError):
        read_earlier(paths)
    paths.resumed.write_bytes(data)
    with pytest.raises(TsugiError):
        resumed_of(paths)


@settings(fuzzed, max_examples=6)
@given(yamls)
def test_any_recipe_composes_or_is_refused(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with contextlib.suppress(TsugiError):
        usable(compose([f"recipe={path}", "model=tiny"]))


names = [field.name for each in (bench_spec.Bench, simulation.Simulation) for field in fields(each)]
names += [f"scenario.{field.name}" for field in fields(bench_spec.Scenario)]
asked = st.lists(
    st.tuples(st.sampled_from(names), st.one_of(texts, numbers.map(str), values.map(repr)))
    .map(lambda pair: f"bench.{pair[0]}={pair[1]}"), max_size=4,
)  # fmt: skip


@settings(fuzzed, max_examples=8)
@given(asked)
def test_any_benchmark_is_understood_or_refused(tokens):
    with contextlib.suppress(TsugiError):
        bench_spec.read(tokens)
    with contextlib.suppress(TsugiError):
        bench_spec.described(simulation.Simulation, simulation.SETTINGS, tokens, simulation._broken)


# What lies in a run directory

facts = st.dictionaries(
    st.sampled_from([field.name for field in msgspec.structs.fields(Manifest)]), values, max_size=3,
)  # fmt: skip


@fuzzed
@given(facts)
def test_any_manifest_is_one_that_can_be_or_refused(changes):
    whole = msgspec.to_builtins(manifest(12, {ANCHORS: FileFacts(1, "0" * 64)})) | changes
    try:
        text = encode(msgspec.convert(whole, Manifest))
    except (msgspec.ValidationError, RecursionError, ValueError):
        return
    found, _ = outcome(lambda: decode(text))
    if found is not None:
        assert 0 <= found.samples <= found.samples_total
        assert found.parts == []


@fuzzed
@given(st.lists(st.from_type(AnyRecord), max_size=6), st.floats(0, 1e6))
@example([RoundFired(Fire(1, 1, (), (), "count")), RoundCommitted(1, 1, "", ())], 0.0)  # a round of nobody
def test_any_journal_is_replayed_or_refused(entries, at_s):
    lines, _ = encode_entries([began(hub_plan()), *(Entry(at_s, each) for each in entries)])
    outcome(lambda: replay(hub_plan(), parse(lines).entries, 0.0))
