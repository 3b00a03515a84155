"""What another machine gives is looked into: what nobody could go on from is refused by name, whatever its hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from tsugi_cli.launch.looking import Expected, check_adapter, check_checkpoint
from tsugi_kpool.codec.coding import coded_bytes, encode
from tsugi_kpool.core.checkpoint import ANCHORS, part_name
from tsugi_kpool.core.hub.votes import agreed_on
from tsugi_kpool.errors import LaunchError
from tsugi_kpool.exchange.reduction import REST

N, P = 4, 96
PART = part_name(0)
Tensors = dict[str, np.ndarray]


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def sound() -> tuple[Tensors, Tensors]:
    """What a first member writes: the fleet's own, and its own."""
    left = np.stack([encode(row, REST) for row in numbers(N, P, seed=1)])
    own = {"own.0.exp_avg": numbers(3, P), "own.0.step": np.array(7.0, np.float32), "owed.residual": numbers(P)}
    return {"anchor": numbers(N, P), "left": left}, own | {"rng.cpu": np.zeros(9, np.uint8)}


def said_of(anchor: np.ndarray, *rounds: tuple[int, ...]) -> tuple[tuple[tuple[int, ...], str], ...]:
    """What the fleet has agreed on after these rounds, the last of which have made these anchors."""
    found: dict[tuple[int, ...], str] = {}
    for adapters in rounds:
        found = agreed_on(found, adapters, hashlib.sha256(anchor[list(adapters)].tobytes()).hexdigest())
    return tuple(found.items())


def looked_at(folder: Path, anchors: Tensors | bytes, own: Tensors | bytes, expected: Expected) -> str:
    """Why these files are refused; empty: they are taken."""
    for name, content in ((ANCHORS, anchors), (PART, own)):
        (folder / name).write_bytes(content if isinstance(content, bytes) else save(content))
    try:
        check_checkpoint(folder, [ANCHORS, PART], expected)
    except LaunchError as error:
        return str(error)
    return ""


def test_what_a_first_member_writes_is_taken(tmp_path: Path) -> None:
    anchors, own = sound()
    digests = (*said_of(anchors["anchor"], (0, 1), (2, 3)), ((7,), "alone"))
    assert looked_at(tmp_path, anchors, own, Expected(N, digests=digests)) == ""
    own["own.0.exp_avg_sq"] = np.full(P, np.inf, np.float32)
    assert looked_at(tmp_path, {"anchor": anchors["anchor"]}, own, Expected(N)) == ""
    anchors |= {"fleet.0.exp_avg": numbers(P)}
    assert looked_at(tmp_path, anchors, {"rng.cpu": own["rng.cpu"]}, Expected(N, "gradient")) == ""


def nan(values: np.ndarray) -> np.ndarray:
    found = values.copy()
    found.reshape(-1)[5] = np.nan
    return found


ANCHOR, LEFT = sound()[0]["anchor"], sound()[0]["left"]
SPOILT: dict[str, tuple[Tensors | bytes, str]] = {
    "no file of this kind": (b"rubbish" * 40, "anchors.safetensors is no safetensors"),
    "empty": (b"", "anchors.safetensors is no safetensors"),
    "a header without end": ((2**60).to_bytes(8, "little") + b"{}", "is no safetensors"),
    "cut off": (save({"anchor": ANCHOR})[:-8], "is no safetensors"),
    "more than its header says": (save({"anchor": ANCHOR}) + b"12345678", "is no safetensors"),
    "no anchors": ({"left": LEFT}, "has no 'anchor'"),
    "of a smaller pool": ({"anchor": ANCHOR[1:]}, f"has anchors [3, {P}] of F32, this run's are [4, {P}] of F32"),
    "of larger adapters": ({"anchor": numbers(N, P + 1)}, f"has anchors [4, {P + 1}]"),
    "flat": ({"anchor": ANCHOR.reshape(-1)}, f"has anchors [{N * P}]"),
    "of other numbers": ({"anchor": ANCHOR.astype(np.float64)}, "of F64"),
    "no number": ({"anchor": nan(ANCHOR)}, "has values in 'anchor' that are no numbers"),
    "what is left of another pool": ({"anchor": ANCHOR, "left": LEFT[:, 1:]}, "what is left over has the shape"),
    "left as numbers": ({"anchor": ANCHOR, "left": numbers(N, coded_bytes(P, REST))}, "F32 in 'left', not U8"),
    "left of fewer adapters": ({"anchor": ANCHOR, "left": LEFT[1:]}, "has 3 rows in 'left', one for each of 4"),
    "left of more adapters": ({"anchor": ANCHOR, "left": np.concatenate([LEFT, LEFT[:1]])}, "has 5 rows in 'left'"),
    "something else": ({"anchor": ANCHOR, "anchor2": ANCHOR}, "has 'anchor2', which is no part of it"),
    "moments of another mode": ({"anchor": ANCHOR, "fleet.0.step": ANCHOR}, "has 'fleet.0.step'"),
    "one number that another has not": ({"anchor": ANCHOR + np.eye(N, P, dtype=np.float32)}, "than the fleet has"),
}


@pytest.mark.parametrize("what", SPOILT)
def test_anchors_that_nobody_could_go_on_from_are_named(tmp_path: Path, what: str) -> None:
    content, words = SPOILT[what]
    earlier = tmp_path / "earlier.safetensors"
    earlier.write_bytes(save({"anchor": numbers(N, P, seed=9)}))
    expected = Expected(N, digests=said_of(ANCHOR, (0, 1), (2, 3)), like=earlier)
    said = looked_at(tmp_path, content, sound()[1], expected)
    assert words in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("own", "words"),
    [
        (b"rubbish" * 40, "replica0.safetensors is no safetensors"),
        ({"anchor": ANCHOR}, "replica0.safetensors has 'anchor', which is no part of it"),
        ({}, "replica0.safetensors has nothing in it"),
        ({"own.0.exp_avg": np.zeros((0, 3), np.float32)}, "replica0.safetensors has nothing in it"),
        ({"own.0.exp_avg": nan(ANCHOR)}, "replica0.safetensors has values in 'own.0.exp_avg' that are no numbers"),
    ],
)
def test_a_replicas_own_state_is_looked_at_as_well(tmp_path: Path, own: Tensors | bytes, words: str) -> None:
    assert words in looked_at(tmp_path, sound()[0], own, Expected(N))


def test_a_digest_says_nothing_once_one_of_its_adapters_has_moved_on() -> None:
    found = agreed_on(agreed_on(agreed_on({}, (0, 1), "a"), (2, 3), "b"), (1, 2), "c")
    assert found == {(1, 2): "c"}
    assert agreed_on(found, (0, 3), "d") == {(1, 2): "c", (0, 3): "d"}


WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def adapter(folder: Path, change: Callable[[Path], object]) -> str:
    (folder / WEIGHTS).write_bytes(save({"lora_A": numbers(3)}))
    (folder / CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": 8}))
    (folder / "tokenizer.json").write_text("{}")
    change(folder)
    try:
        check_adapter(folder)
    except LaunchError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda it: None, ""),
        (lambda it: (it / WEIGHTS).write_bytes(b"rubbish" * 9), f"{WEIGHTS} is no safetensors"),
        (lambda it: (it / WEIGHTS).write_bytes(save({"lora_A": nan(ANCHOR)})), f"{WEIGHTS} has values in 'lora_A'"),
        (lambda it: (it / CONFIG).unlink(), f"{CONFIG} has no peft_type"),
        (lambda it: (it / CONFIG).write_text("[]"), f"{CONFIG} has no fields"),
        (lambda it: (it / CONFIG).write_text('{"peft_type": "LORA", "r": "8"}'), f"{CONFIG} has no r"),
        (lambda it: (it / CONFIG).write_text('{"peft_type": "LORA", "r": -1}'), f"{CONFIG} has r=-1, which is no"),
        (lambda it: (it / CONFIG).write_text('{"peft_type": "LORA", "r": 0}'), f"{CONFIG} has r=0, which is no"),
        (lambda it: (it / CONFIG).write_text('{"peft_type": "LORA", "r": true}'), f"{CONFIG} has r=true"),
        (lambda it: (it / "tokenizer.json").write_bytes(b"\xff{"), "tokenizer.json is no JSON"),
        (lambda it: (it / "tokenizer.json").write_text("[" * 100_000), "tokenizer.json is no JSON"),
    ],
)
def test_an_adapter_that_could_not_be_loaded_is_named(tmp_path: Path, change: Callable, words: str) -> None:
    said = adapter(tmp_path, change)
    assert said.startswith(words) if words else not said
