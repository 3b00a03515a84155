"""PASS, FAIL or INCONCLUSIVE: what paired runs of the protocol say.

    python benchmarks/llama3_8b_lora/verdict.py RUNS

RUNS holds a folder for each pair, with a record of each arm: RUNS/*/sync.json and RUNS/*/kpool.json (records.py).

    PASS          five pairs or more; the lower bound of the uplift of tokens/s (one-sided, 95 %) is at least 15 %;
                  the final loss is on average at most 0.05 above the synchronous arm's; nothing diverged or failed
    FAIL          a K-Pool run failed, hung or diverged, however many pairs there are; or, with five pairs, the
                  final loss is more than 0.05 above, or the uplift is below 5 %
    INCONCLUSIVE  all else: too few pairs, records that are missing or do not belong together, an uplift in between

Both arms train on the same samples, so that the uplift of tokens/s is also that of the time for them. The exit codes
are 0, 3 and 4.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

PAIRS = 5
UPLIFT, NO_UPLIFT = 0.15, 0.05
LOSS_NATS = 0.05
DIVERGED_NATS = 0.5
"""A training loss that is this much higher at a matched checkpoint has diverged. The protocol gives no number."""
EXACT = 1e-9
"""Sums of floats: 0.05 above is not more than 0.05 above."""
# Student's t, one-sided 95 %, for 1 to 30 degrees of freedom.
# fmt: off
_T = (
    6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833, 1.812, 1.796, 1.782, 1.771, 1.761, 1.753,
    1.746, 1.740, 1.734, 1.729, 1.725, 1.721, 1.717, 1.714, 1.711, 1.708, 1.706, 1.703, 1.701, 1.699, 1.697,
)
# fmt: on


class Verdict(StrEnum):
    """What the runs say, in the protocol's words."""

    PASS = "PASS"
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"


EXIT_CODES = {Verdict.PASS: 0, Verdict.FAIL: 3, Verdict.INCONCLUSIVE: 4}


@dataclass(frozen=True)
class Arm:
    """One run, as far as the rules look at it."""

    tokens_per_s: float
    """Of the fleet, from 5 % to 95 % of the run."""
    final_loss: float
    """Eval loss after training, nats per token."""
    checkpoints: tuple[float, ...] = ()
    """Mean training loss around each matched checkpoint."""
    failure: str | None = None
    """Why it did not finish."""
    equal: str = ""
    """What must be the same in both arms, as text: samples, seed, data."""


@dataclass(frozen=True)
class Pair:
    """Two arms of the same seed; None where a record is missing."""

    name: str
    sync: Arm | None
    kpool: Arm | None


@dataclass(frozen=True)
class Uplift:
    """Of tokens/s, as shares: 0.15 is 15 %."""

    mean: float
    lower: float
    """Lower bound of the one-sided 95 % interval; of one pair, minus infinity."""


@dataclass(frozen=True)
class Judgement:
    """The verdict and all that it rests on."""

    verdict: Verdict
    reasons: tuple[str, ...]
    pairs: int
    uplift: Uplift | None
    loss_above: float | None
    """Mean over pairs, nats."""


def judge(pairs: Sequence[Pair]) -> Judgement:
    """Apply the rules to all pairs that were meant to be."""
    broken = [text for pair in pairs if pair.kpool is not None for text in broke(pair)]
    void = [text for pair in pairs if (text := why_void(pair)) is not None]
    whole = [pair for pair in pairs if why_void(pair) is None and not broke(pair)]
    gain = uplift([pair.kpool.tokens_per_s / pair.sync.tokens_per_s for pair in whole]) if whole else None
    above = statistics.mean(pair.kpool.final_loss - pair.sync.final_loss for pair in whole) if whole else None
    verdict, reasons = _decide(broken, void, len(whole), gain, above)
    return Judgement(verdict, tuple(reasons), len(whole), gain, above)


def _decide(
    broken: list[str], void: list[str], whole: int, gain: Uplift | None, above: float | None
) -> tuple[Verdict, list[str]]:
    if broken:
        return Verdict.FAIL, broken
    if whole < PAIRS or gain is None or above is None:
        return Verdict.INCONCLUSIVE, [f"{whole} whole pairs of {PAIRS} that are needed", *void]
    failed = []
    if above > LOSS_NATS + EXACT:
        failed.append(f"the final loss is {above:.4f} above the synchronous arm's, more than {LOSS_NATS}")
    if gain.mean < NO_UPLIFT - EXACT:
        failed.append(f"the uplift is {gain.mean:.1%}, below {NO_UPLIFT:.0%}")
    if failed:
        return Verdict.FAIL, failed
    if gain.lower < UPLIFT - EXACT:
        return Verdict.INCONCLUSIVE, [f"the uplift's lower bound is {gain.lower:.1%}, below {UPLIFT:.0%}", *void]
    return Verdict.PASS, [f"the uplift's lower bound is {gain.lower:.1%}, at least {UPLIFT:.0%}", *void]


def broke(pair: Pair) -> list[str]:
    """What a K-Pool run did that no further run makes good."""
    arm, sync = pair.kpool, pair.sync
    if arm is None:
        return []
    if arm.failure is not None:
        return [f"{pair.name}: the K-Pool run failed: {arm.failure}"]
    if not all(math.isfinite(loss) for loss in (arm.final_loss, *arm.checkpoints)):
        return [f"{pair.name}: a loss of the K-Pool run is not a number"]
    matched = zip(arm.checkpoints, sync.checkpoints, strict=False) if sync and sync.failure is None else ()
    worst = max((mine - theirs for mine, theirs in matched), default=0.0)
    if worst > DIVERGED_NATS + EXACT:
        return [f"{pair.name}: the training loss is {worst:.2f} above the synchronous arm's at a matched checkpoint"]
    return []


def why_void(pair: Pair) -> str | None:
    """Why a pair does not count, if it does not."""
    missing = [name for name, arm in (("sync", pair.sync), ("kpool", pair.kpool)) if arm is None]
    if pair.sync is None or pair.kpool is None:
        return f"{pair.name}: no record of {' and '.join(missing)}"
    if pair.sync.failure is not None:
        return f"{pair.name}: the synchronous run failed: {pair.sync.failure}"
    if pair.sync.equal != pair.kpool.equal:
        return f"{pair.name}: the arms differ: sync {pair.sync.equal}; kpool {pair.kpool.equal}"
    if not math.isfinite(pair.sync.final_loss):
        return f"{pair.name}: the synchronous run's final loss is not a number"
    if not (pair.sync.tokens_per_s > 0 and pair.kpool.tokens_per_s > 0):
        return f"{pair.name}: a run is too short for a throughput"
    return None


def uplift(ratios: Sequence[float]) -> Uplift:
    """Geometric mean of the ratios minus 1, and its lower bound by Student's t on their logarithms."""
    logs = [math.log(ratio) if ratio > 0 else -math.inf for ratio in ratios]
    middle = statistics.mean(logs)
    if len(logs) < 2 or not math.isfinite(middle):
        return Uplift(math.exp(middle) - 1, -math.inf)
    error = statistics.stdev(logs) / math.sqrt(len(logs))
    return Uplift(math.exp(middle) - 1, math.exp(middle - _T[min(len(logs) - 1, len(_T)) - 1] * error) - 1)


def read(folder: Path) -> list[Pair]:
    """All pairs below a folder, in the order of their names."""
    folders = sorted({path.parent for path in folder.glob("*/*.json") if path.stem in ("sync", "kpool")})
    return [Pair(each.name, _arm(each / "sync.json"), _arm(each / "kpool.json")) for each in folders]


def _arm(path: Path) -> Arm | None:
    """A record; None when it is absent or is none."""
    try:
        return arm(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def arm(record: dict[str, Any]) -> Arm:
    """What the rules look at in a record."""
    if record["failure"] is not None:
        return Arm(0.0, math.nan, failure=str(record["failure"]))
    return Arm(
        tokens_per_s=float(record["tokens_per_s"] or 0.0),
        final_loss=_number(record["final_loss"]),
        checkpoints=tuple(_number(loss) for loss in record["checkpoints"]),
        equal=json.dumps(record["equal"], sort_keys=True),
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def lines(found: Judgement, pairs: Sequence[Pair]) -> list[str]:
    """All figures in words, the verdict last."""
    text = []
    for pair in pairs:
        if pair.sync and pair.kpool and why_void(pair) is None and pair.kpool.failure is None:
            ratio, above = (
                pair.kpool.tokens_per_s / pair.sync.tokens_per_s,
                pair.kpool.final_loss - pair.sync.final_loss,
            )
            rates = f"{pair.sync.tokens_per_s:.1f} -> {pair.kpool.tokens_per_s:.1f} tokens/s ({ratio - 1:+.1%})"
            text.append(f"{pair.name}: {rates}, final loss {pair.kpool.final_loss:.4f} ({above:+.4f})")
    if found.uplift is not None and found.loss_above is not None:
        bound = f"lower bound {found.uplift.lower:.1%}" if found.pairs > 1 else "no bound from one pair"
        text.append(f"uplift {found.uplift.mean:.1%}, {bound} (one-sided 95 %, {found.pairs} pairs)")
        text.append(f"final loss {found.loss_above:+.4f} on average")
    return [*text, *found.reasons, str(found.verdict)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    pairs = read(parser.parse_args().runs)
    found = judge(pairs)
    print("\n".join(lines(found, pairs)))
    return EXIT_CODES[found.verdict]


if __name__ == "__main__":
    sys.exit(main())
