"""What became of a user's rows: counted while they are prepared, said in a few lines, kept in data.report.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .layout import lines as layout_lines

MAX_SHOWN = 5
"""Bad rows that are named in an error; the rest are counted."""
MAX_KEPT = 1000
"""Bad rows that are listed in the report."""
FIRST_CHARACTERS = 600
"""Of the first sample, in the lines; the report has all of it."""
BAR = 24


@dataclass
class Tally:
    """Counts of a part of the rows; those of all parts add up."""

    read: int = 0
    kept: int = 0
    bad: int = 0
    bad_rows: list[str] = field(default_factory=list)
    """`file:line: reason`, the first ones."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Reason -> rows from which nothing is trained."""
    changed: Counter[str] = field(default_factory=Counter)
    """Reason -> samples that were cut, or otherwise are not what the row says in full."""
    samples: Counter[str] = field(default_factory=Counter)
    """Part -> samples."""
    tokens: int = 0
    supervised: int = 0
    """Both of train."""
    lengths: Counter[int] = field(default_factory=Counter)
    """Power of two -> samples of train that are longer than half of it, and no longer than it."""

    def bad_row(self, place: str, reason: str) -> None:
        """A row that cannot be trained on."""
        self.bad += 1
        if len(self.bad_rows) < MAX_KEPT:
            self.bad_rows.append(f"{place}: {reason}")

    def drop(self, reason: str) -> None:
        """A row from which nothing is trained."""
        self.dropped[reason.removeprefix("dropped: ")] += 1

    def sample(self, part: str, length: int, supervised: int) -> None:
        """A sample that was written."""
        self.samples[part] += 1
        if part == "train":
            self.tokens += length
            self.supervised += supervised
            self.lengths[1 << max(0, length - 1).bit_length()] += 1

    def add(self, other: Tally) -> None:
        """Those of the rows that come next."""
        for name in ("read", "kept", "bad", "tokens", "supervised"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("dropped", "changed", "samples", "lengths"):
            getattr(self, name).update(getattr(other, name))
        self.bad_rows = [*self.bad_rows, *other.bad_rows][:MAX_KEPT]


def refusal(tally: Tally) -> str:
    """The first bad rows, and how many more there are."""
    more = tally.bad - MAX_SHOWN
    return "\n".join([*tally.bad_rows[:MAX_SHOWN], *([f"... and {more} more"] if more > 0 else [])])


@dataclass(frozen=True)
class First:
    """The first sample of train, as its user should see it: pieces of text, and whether each is trained on."""

    place: str
    pieces: tuple[tuple[str, bool], ...]
    rejected: tuple[tuple[str, bool], ...] | None = None
    """Of a preference pair the other side; `pieces` are the chosen one."""

    def described(self) -> dict[str, Any]:
        """As the report has it."""
        found: dict[str, Any] = {"place": self.place, "pieces": [list(piece) for piece in self.pieces]}
        return found if self.rejected is None else {**found, "rejected": [list(piece) for piece in self.rejected]}


def report(
    tally: Tally, *, detected: Sequence[str], repeated: int, held_elsewhere: int, shared: int, left_out: int,
    notes: Sequence[str], first: First | None, n: dict[str, int], layout: dict[str, Any], pairs: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Everything that is known, for people and programs."""
    return {
        "detected": list(detected),
        "rows": {
            "read": tally.read,
            "kept": tally.kept,
            "refused": tally.bad,
            "dropped": dict(tally.dropped),
            "repeated": repeated,
            "left_out_of_train_because_held_out": held_elsewhere,
            "in_train_and_held_out": shared,
            "left_out": left_out,
        },
        "samples": n,
        "pairs": pairs,
        "layout": layout,
        "changed": {reason: count for reason, count in tally.changed.items() if count},
        "tokens": tally.tokens,
        "supervised_tokens": tally.supervised,
        "lengths": [{"up_to": up_to, "samples": tally.lengths[up_to]} for up_to in sorted(tally.lengths)],
        "notes": list(notes),
        "bad_rows": tally.bad_rows,
        "first": None if first is None else first.described(),
    }


def parts_words(parts: Mapping[str, int], unit: str) -> str:
    """How many there are and what becomes of them: "200 rows: 136 train, 64 eval (data.n_eval)"."""
    keys = {"train": "", "eval": " (data.n_eval)", "test": " (data.n_test)"}
    found = [(name, parts.get(name, 0)) for name in keys]
    whole = sum(number for _, number in found)
    said = ", ".join(f"{number:,} {name}{keys[name]}" for name, number in found if number or name == "train")
    few = "; less than half is left to train on" if 2 * parts.get("train", 0) < whole else ""
    return f"{whole:,} {unit}: {said}{few}"


def lines(report: dict[str, Any]) -> list[str]:
    """The report in words."""
    rows, n = report["rows"], report["samples"]
    said = [f"data: {each}" for each in report["detected"]]
    said.append(f"rows: {_rows(rows)}")
    share = report["supervised_tokens"] / max(1, report["tokens"])
    one, many = ("pair", "pairs") if report.get("pairs") else ("sample", "samples")
    said.append(f"{parts_words(n, many)}; {report['tokens']:,} tokens, {share:.0%} of them supervised")
    said += layout_lines(report["layout"])
    said += [f"changed: {count:,} x {reason}" for reason, count in report["changed"].items()]
    said += _histogram(report["lengths"], one)
    said += [f"note: {note}" for note in report["notes"]]
    if report["first"] is not None:
        first = report["first"]
        said.append(f"first {one} ({first['place']}), [[what is trained on]]: {_shown(first['pieces'])}")
        said += [f"rejected: {_shown(first['rejected'])}"] if "rejected" in first else []
    return said


def _rows(rows: dict[str, Any]) -> str:
    parts = [f"{rows['read']:,} read", f"{rows['kept']:,} kept"]
    parts += [f"{rows['refused']:,} skipped as unusable (data.report.json lists them)"] if rows["refused"] else []
    parts += [f"{count:,} dropped: {reason}" for reason, count in rows["dropped"].items()]
    parts += [f"{rows['repeated']:,} repeat another"] if rows["repeated"] else []
    held = rows["left_out_of_train_because_held_out"]
    parts += [f"{held:,} left out of train because eval or test has the same"] if held else []
    shared = rows["in_train_and_held_out"]
    parts += [f"{shared:,} of train are in eval or test, too"] if shared else []
    parts += [f"{rows['left_out']:,} more than data.n_train"] if rows["left_out"] else []
    return ", ".join(parts)


def _histogram(lengths: Sequence[dict[str, int]], one: str) -> list[str]:
    if not lengths:
        return []
    most, width = max(each["samples"] for each in lengths), len(f"{lengths[-1]['up_to']:,}")
    return [f"tokens of a {one}:"] + [
        f"  up to {each['up_to']:>{width},}  {'#' * max(1, round(BAR * each['samples'] / most)):<{BAR}} "
        f"{each['samples']:,}"
        for each in lengths
    ]


def _shown(pieces: Sequence[Sequence[Any]]) -> str:
    """The sample in one line; its middle is left out when it is long."""
    text = "".join(f"[[{text}]]" if trained else text for text, trained in pieces)
    text = text.replace("\n", "\\n")
    if len(text) <= FIRST_CHARACTERS:
        return text
    half = FIRST_CHARACTERS // 2
    return f"{text[:half]} ... {text[-half:]}"


def pieces_of(ids: Sequence[int], spans: Iterable[tuple[int, int]], decode: Any) -> tuple[tuple[str, bool], ...]:
    """A sample's text, cut where training begins and ends.

    Args:
        ids: Its tokens.
        spans: Those that are trained on.
        decode: Token ids -> text with special tokens.
    """
    found: list[tuple[str, bool]] = []
    at = 0
    for start, stop in spans:
        found += [(decode(ids[at:start]), False)] if start > at else []
        found.append((decode(ids[start:stop]), True))
        at = stop
    return (*found, *([(decode(ids[at:]), False)] if at < len(ids) else []))
