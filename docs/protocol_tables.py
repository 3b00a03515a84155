"""The tables of docs/protocol.md, rendered from the message classes: `python docs/protocol_tables.py --write`.

Names, types and defaults are what the decoder uses; what a message and a field mean is their docstring. Who sends a
message and whether it may be lost stands here, because no decoder knows it: a message without its line is an error.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import sys
import types
from itertools import pairwise
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import msgspec

from tsugi_kpool.core import messages
from tsugi_kpool.core.messages import facts, from_outside, from_replica
from tsugi_kpool.core.messages.frame import MAX_FRAME_BYTES, SCHEMA_VERSION, Message

PAGE = Path(__file__).resolve().parent / "protocol.md"
MARKED = re.compile(r"<!-- messages -->\n.*?<!-- end -->", re.DOTALL)
REPLICA, JOIN, ASKER = "replica → hub", "`tsugi join` → hub", "observer or member → hub"
ORDER = "no: an order, said again once a second while beats show that it was missed"
ACKED = "no: sent again once a second until its Ack"

WAYS: dict[str, tuple[str, str]] = {
    "Hello": (REPLICA, ACKED + ", or Refused"),
    "Beat": (REPLICA, "yes; the next one says more. The answer is an Ack with seq 0"),
    "Vitals": (REPLICA, "yes; the next one comes a second later. The answer is Stamps"),
    "LeaseRequest": (REPLICA, "no: sent again with the same ticket until its Lease, which is the same again"),
    "Reduced": (REPLICA, "no: sent again until the Commit of its round, or an Ack, half a second later"),
    "Checked": (REPLICA, ACKED),
    "Compared": (REPLICA, ACKED),
    "Broken": (REPLICA, ACKED),
    "Unreached": (REPLICA, ACKED),
    "Discarded": (REPLICA, ACKED),
    "Failed": (REPLICA, ACKED),
    "Evaluated": (REPLICA, ACKED),
    "Saved": (REPLICA, ACKED),
    "Bye": (REPLICA, ACKED),
    "Figures": (REPLICA, "no: sent again once a second until the Totals of its number"),
    "StopFleet": (REPLICA, ACKED),
    "StorePut": (REPLICA, ACKED),
    "StoreGet": (REPLICA, "yes; asked again every 0.05 s while the value is waited for. The answer is StoreValue"),
    "Ack": ("hub → replica", "yes; the sender says it again and is answered again"),
    "Stamps": ("hub → replica", "yes"),
    "Refused": ("hub → replica, `tsugi join`", "yes; the next Hello, beat or request is answered so again"),
    "Totals": ("hub → replica", "yes; the Figures are sent again"),
    "NotTaken": ("hub → replica", "yes; said again every 5 s while more is refused"),
    "Generation": ("hub → replica", ORDER),
    "Fire": ("hub → replica", ORDER),
    "Check": ("hub → replica", "no: said again once a second to those whose Checked has not come"),
    "Compare": ("hub → replica", "no: said again once a second to those whose Compared has not come"),
    "Commit": ("hub → replica", ORDER),
    "Abort": ("hub → replica", "yes: the next Fire or Generation says it, too"),
    "Lease": ("hub → replica", "yes; the request is sent again"),
    "StoreValue": ("hub → replica", "yes; the question is asked again"),
    "Drain": ("hub → replica", ORDER),
    "Refill": ("hub → replica", ORDER),
    "Finish": ("hub → replica", ORDER),
    "SlotRequest": (
        JOIN,
        "yes; sent again every second until that replica has joined: so it holds the place for 30 s, "
        "or until its connection closes",
    ),
    "Slot": ("hub → `tsugi join`", "yes; the request is sent again"),
    "DataRequest": (
        "`tsugi join` → hub; of an adapter or a checkpoint that is offered hub → `tsugi join`",
        "yes; asked again after 3 s. At most 16 of a file are under way",
    ),
    "DataPart": ("who was asked → who has asked", "yes; it is asked for again"),
    "AdapterOffer": (JOIN, "yes; sent again every second until AdapterSettled"),
    "CheckpointOffer": (JOIN, "yes; sent again every second until CheckpointSettled"),
    "CheckpointSettled": ("hub → `tsugi join`", "yes; the offer is sent again"),
    "AdapterSettled": ("hub → `tsugi join`", "yes; the offer is sent again"),
    "StopRequest": (JOIN, "yes; sent again every second until that replica has left"),
    "StopRun": ("owner (`tsugi stop`) → hub", "yes: answered by an Ack with seq 0; sent again until then"),
    "Fell": (JOIN, "yes: without it the silence tells, a few seconds later"),
    "StatusRequest": (ASKER, "yes; sent again"),
    "FleetStatus": ("hub → observer or member", "yes; asked for again"),
}
"""Message -> who sends it to whom, and whether it may be lost."""

PARTS = (from_outside.Slowness, from_outside.ReplicaStatus, from_replica.AdapterFacts, facts.MachineFacts)
"""What stands inside messages."""
PLAIN = {int: "int", float: "float", str: "text", bytes: "bytes", bool: "bool", type(None): "nil"}


COMMON = {
    "seq": "Number of the message, counted up from 1 by each process; its Ack has the same.",
    "replica": "Whose it is: 0, 1, ...",
    "incarnation": "The process's own random id, as in its Hello.",
    "host": "Name of the machine.",
    "pid": "Id of the process on its machine.",
    "config_hash": "SHA-256 (hexadecimal) of the run's configuration as canonical JSON.",
    "steps": "Steps trained by this process.",
    "samples": "Samples trained on by this process.",
    "tokens": "Supervised tokens trained on.",
    "loss": "Smoothed training loss, in nats per supervised token.",
    "lr": "The present learning rate.",
    "sent_bytes": "Contributions of its own that have gone over its link.",
    "machine": "How the machine is.",
    "generation": "Number of the set of members, from 1.",
    "round": "Number of the round, from 1.",
    "seconds": "From the Fire until the round is reduced here.",
    "payload_bytes": "Size of one member's contribution.",
    "reason": "In words, for a person.",
    "sums": "Name -> sum: `loss_sum` (nats), `loss_tokens`, `right_tokens`, `answered`, the scorer's counts; "
    "of pairs `loss_tokens` counts these, and there are `margin_sum` and `right_pairs`. "
    "`metric.NAME` is what the user's function makes of a token, times the tokens.",
    "file": "Its name in the checkpoint: that of the anchors, or of this replica's part.",
    "bytes": "Its size.",
    "sha256": "Of its content, in hexadecimal.",
    "key": "`epochE/` and what gloo calls it.",
    "value": "What gloo wrote there.",
    "members": "Replicas of the generation, in the order of their ranks.",
    "donor": "The member whose anchors newcomers take over.",
    "adapters": "Which ones are shipped.",
    "ticket": "The asker's own, from its request.",
    "start": "First position.",
    "stop": "One behind the last position.",
    "version": "Rounds committed.",
    "run": "The run's name: that of its directory.",
    "stage": "gathering, training, draining, finished, interrupted or failed.",
    "samples_done": "Samples trained on, each counted once.",
    "samples_total": "Samples that the run trains on; 0: unknown.",
    "tokens_per_s": "Supervised tokens per second, of all live replicas together.",
    "aborted": "Rounds that were aborted.",
    "trigger_text": "The trigger in words.",
    "joined": "Replicas that have joined.",
    "state": "What it does, or silent, left, quarantined, failed, done.",
    "step_s": "Duration of its newest step.",
    "lag_steps": "Steps behind the furthest replica.",
    "received_bytes": "Contributions of the others that came over its link.",
    "down_bytes": "Bytes that its link has received over the sideband.",
}
"""Fields whose class does not say what they are, by their name."""


def kinds() -> list[type[Message]]:
    """All messages, in the order of the union that the decoder reads.

    Raises:
        SystemExit: one of them has no line in WAYS, or there is a line too many.
    """
    found = list(get_args(messages.Frame))
    if wrong := {kind.__name__ for kind in found} ^ set(WAYS):
        raise SystemExit(f"docs/protocol_tables.py: WAYS and core/messages/ differ in {', '.join(sorted(wrong))}")
    return found


def type_words(hint: Any) -> str:
    """A type as MessagePack knows it."""
    if hint in PLAIN:
        return PLAIN[hint]
    origin, inside = get_origin(hint), get_args(hint)
    if origin in (types.UnionType, Union):
        return " or ".join(map(type_words, inside))
    if origin is dict:
        return f"map of {type_words(inside[0])} to {type_words(inside[1])}"
    if origin is tuple:
        if inside[-1] is Ellipsis:
            return f"array of {type_words(inside[0])}"
        return f"array ({', '.join(map(type_words, inside))})"
    return f"[{hint.__name__}](#{hint.__name__.lower()})"


def meanings(kind: type) -> dict[str, str]:
    """Field -> its docstring: the text that stands below it in the source."""
    body = next(node.body for node in ast.parse(inspect.getsource(kind)).body if isinstance(node, ast.ClassDef))
    found: dict[str, str] = {}
    for field, text in pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            found[ast.unparse(field.target)] = one_line(str(text.value.value))
    return found


def one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def default_words(field: msgspec.structs.FieldInfo) -> str:
    """What a receiver takes where the field is left out; empty where it must be there."""
    if field.default is not msgspec.NODEFAULT:
        value = field.default
        return "nil" if value is None else "[]" if value == () else str(value).lower() if value != "" else '""'
    return "" if field.default_factory is msgspec.NODEFAULT else "{}"


def undocumented() -> list[str]:
    """Fields of which neither their class nor this script says what they are."""
    known = {kind: {*COMMON, *meanings(kind)} for kind in [*kinds(), *PARTS]}
    return [f"{kind.__name__}.{name}" for kind in known for name in kind.__struct_fields__ if name not in known[kind]]


def fields(kind: type) -> list[str]:
    """The table of a struct's fields; of one that is an array, with their positions."""
    hints, known, array = get_type_hints(kind), meanings(kind), kind.__struct_config__.array_like  # type: ignore[attr-defined]
    rows = [f"| {'position' if array else 'key'} | field | type | default | what |", "|---|---|---|---|---|"]
    for position, field in enumerate(msgspec.structs.fields(kind)):
        key = str(position) if array else f"`{field.encode_name}`"
        words = [
            key,
            field.name,
            type_words(hints[field.name]),
            default_words(field),
            known.get(field.name) or COMMON[field.name],
        ]
        rows.append(f"| {' | '.join(words)} |")
    return rows if len(rows) > 2 else ["No fields."]


def section(kind: type[Message]) -> list[str]:
    """One message: what it is, its way, its fields."""
    way, _ = WAYS[kind.__name__]
    doc = one_line(inspect.getdoc(kind) or "")
    tag = kind.__struct_config__.tag
    doc += "" if tag == kind.__name__ else f" In a frame its `type` is `{tag}`."
    return [f"### {kind.__name__}", "", f"{way}. {doc}", "", *fields(kind), ""]


def part(kind: type) -> list[str]:
    """A struct that stands inside messages."""
    form = "An array." if kind.__struct_config__.array_like else "A map."  # type: ignore[attr-defined]
    return [f"### {kind.__name__}", "", f"{one_line(inspect.getdoc(kind) or '')} {form}", "", *fields(kind), ""]


def render() -> str:
    """The marked part of the page."""
    found = kinds()
    if missing := undocumented():
        raise SystemExit(f"docs/protocol_tables.py: nothing says what these are: {', '.join(missing)}")
    head = [
        f"Schema version {SCHEMA_VERSION}, frames of {MAX_FRAME_BYTES} bytes at most, {len(found)} messages.",
        "",
        "| message | from → to | may be lost? |",
        "|---|---|---|",
        *(f"| [{kind.__name__}](#{kind.__name__.lower()}) | {' | '.join(WAYS[kind.__name__])} |" for kind in found),
        "",
    ]
    lines = [
        *head,
        *(line for kind in found for line in section(kind)),
        *(line for each in PARTS for line in part(each)),
    ]
    return "<!-- messages -->\n" + "\n".join(lines).rstrip() + "\n<!-- end -->"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    text = PAGE.read_text(encoding="utf-8")
    rendered = MARKED.sub(lambda _: render(), text)
    if parser.parse_args().write:
        PAGE.write_text(rendered, encoding="utf-8")
        return 0
    print("the protocol's tables agree" if rendered == text else "the protocol's tables disagree; run with --write")
    return int(rendered != text)


if __name__ == "__main__":
    sys.exit(main())
