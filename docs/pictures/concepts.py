"""Draw the pictures of docs/concepts.md: python docs/pictures/concepts.py

They are as wide as a telephone and follow light and dark mode.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

HERE = Path(__file__).parent
WIDTH = 420
STYLE = (
    "svg{--paper:#fff;--ink:#24292f;--soft:#57606a;--line:#c4ccd4;--fast:#4269d0;--slow:#b97d00;--round:#2f9a48;"
    "--fill:#eef1f5}"
    "@media(prefers-color-scheme:dark){svg{--paper:#14171c;--ink:#e6e9ee;--soft:#b3bcc7;--line:#4a525c;--fill:#232831}}"
    "text{font:12px system-ui,sans-serif;fill:var(--ink);paint-order:stroke;"
    "stroke:var(--paper);stroke-width:4px}.soft{fill:var(--soft)}.paper{fill:var(--paper)}"
    ".box{fill:var(--fill);stroke:var(--line)}.fast{fill:var(--fast)}.slow{fill:var(--slow)}"
    ".wait{fill:none;stroke:var(--line);"
    "stroke-dasharray:3 3}.round{fill:var(--round)}.on{fill:#fff;stroke:none}.in{stroke:var(--fill)}"
    ".arrow{stroke:var(--soft);fill:none}.data{stroke:var(--round);"
    "stroke-width:3;fill:none}.dash{stroke:var(--soft);stroke-dasharray:4 4;fill:none}"
)


def text(x: float, y: float, words: str, anchor: str = "start", kind: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" class="{kind}">{escape(words)}</text>'


def box(x: float, y: float, width: float, height: float, kind: str = "box") -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="3" class="{kind}"/>'


def path(drawn: str, kind: str = "arrow") -> str:
    return f'<path d="{drawn}" class="{kind}"/>'


def save(name: str, title: str, height: int, parts: list[str]) -> None:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" role="img">'
    paper = '<rect class="paper" width="100%" height="100%" rx="6"/>'
    body = "\n".join(parts)
    (HERE / name).write_text(
        f"{head}<title>{title}</title><style>{STYLE}</style>{paper}\n{body}\n</svg>\n", encoding="utf-8"
    )


def fleet() -> list[str]:
    """A hub above three replicas: facts and orders go up and down, weight changes across."""
    parts = [
        box(135, 14, 150, 46),
        text(210, 34, "hub", "middle", "in"),
        text(210, 50, "orders, never a tensor", "middle", "soft in"),
    ]
    for number, (x, words) in enumerate(((12, "fast GPU"), (152, "fast GPU"), (292, "slow GPU"))):
        parts += [
            box(x, 130, 116, 92),
            text(x + 58, 150, f"replica {number}", "middle", "in"),
            text(x + 58, 166, words, "middle", "soft in"),
            box(x + 12, 178, 92, 34, "slow" if number == 2 else "fast"),
            text(x + 58, 192, "whole model", "middle", "on"),
            text(x + 58, 206, "and its LoRA", "middle", "on"),
            path(f"M210 60L{x + 58} 130", "dash"),
        ]
    parts += [path("M70 222V244H350V222", "data"), path("M210 222V244", "data")]
    parts += [
        text(210, 100, "facts up, orders down (encrypted)", "middle", "soft"),
        text(210, 262, "rounds: weight changes, between the replicas", "middle", "soft"),
    ]
    return parts


def _steps(y: float, length: float, kind: str, end: float = 408, start: float = 76) -> list[str]:
    parts, x = [], start
    while x + length <= end:
        parts.append(box(x, y, length - 2, 20, kind))
        x += length
    return parts


def waiting() -> list[str]:
    """Lock-step above, K-Pool below."""
    parts = [text(8, 20, "Lock-step (DDP): everybody waits for the slowest at every step.")]
    for row, y in enumerate((30, 56)):
        parts.append(text(8, y + 14, f"replica {row}", kind="soft"))
        for step in range(4):
            x = 76 + 83 * step
            if row:
                parts.append(box(x, y, 81, 20, "slow"))
            else:
                parts += [
                    box(x, y, 19, 20, "fast"),
                    box(x + 21, y + 0.5, 60, 19, "wait"),
                    text(x + 51, y + 14, "waits", "middle", "soft"),
                ]
    parts.append(text(8, 108, "K-Pool: each goes at its own pace, rounds run beside the steps."))
    parts += [text(8, 132, "replica 0", kind="soft"), *_steps(118, 20.75, "fast")]
    parts += [text(8, 158, "replica 1", kind="soft"), *_steps(144, 83, "slow")]
    parts.append(text(8, 186, "rounds", kind="soft"))
    parts += [box(x, 174, 46, 16, "round") for x in (128, 211, 294)]
    parts += [text(x + 23, 186, "K of N", "middle", "on") for x in (128, 211, 294)]
    parts.append(text(8, 212, "time goes to the right; a box is a step", kind="soft"))
    return parts


def buffer() -> list[str]:
    """A LoRA in eight pieces: each has a buffer, two are in the round."""
    parts = [text(8, 20, "A replica's LoRA, cut into N = 8 small adapters")]
    fills = (0.9, 0.85, 0.7, 0.6, 0.5, 0.4, 0.25, 0.15)
    for number, share in enumerate(fills):
        x, height = 14 + 50 * number, 70
        sent = number < 2
        parts += [
            box(x, 32, 42, height),
            box(x, 32 + height * (1 - share), 42, height * share, "round" if sent else "fast"),
            text(x + 21, 118, str(number), "middle", "soft"),
        ]
    parts += [
        path("M10 126V132H104V126"),
        text(8, 150, "K = 2 go into this round;"),
        text(8, 166, "their buffers are then empty."),
        path("M110 126V132H410V126"),
        text(180, 150, "The other six wait for their turn"),
        text(180, 166, "and go on filling."),
        text(8, 192, "Height: changes that were trained and not averaged yet.", kind="soft"),
    ]
    return parts


def one_round() -> list[str]:
    """What the hub orders: fire, reduce, commit, apply."""
    parts = []
    for name, x in (("hub", 40), ("replica 0", 160), ("replica 1", 320)):
        parts += [text(x, 20, name, "middle"), path(f"M{x} 28V300", "dash")]
    for y in range(34, 290, 22):
        parts.append(box(134, y, 14, 20, "fast"))
    for y in range(34, 258, 66):
        parts.append(box(332, y, 14, 64, "slow"))
    for y, words in ((56, "1 fire"), (226, "3 commit")):
        parts += [path(f"M40 {y}H320M314 {y - 4}L320 {y}L314 {y + 4}"), path(f"M154 {y - 4}L160 {y}L154 {y + 4}")]
        parts.append(text(48, y - 7, words))
    parts += [path("M320 186H40M46 182L40 186L46 190"), text(48, 179, "2 reduced")]
    parts += [
        box(160, 76, 160, 88, "round"),
        text(240, 108, "both exchange and", "middle", "on"),
        text(240, 124, "average the changes", "middle", "on"),
        text(240, 140, "of adapters 0 and 1", "middle", "on"),
        text(354, 120, "steps", kind="soft"),
        text(354, 136, "go on", kind="soft"),
        text(84, 120, "steps", kind="soft"),
        text(84, 136, "go on", kind="soft"),
        path("M150 262H180M300 262H330"),
        text(240, 258, "4 applied", "middle"),
        text(240, 274, "between two steps", "middle", "soft"),
    ]
    return parts


def main() -> None:
    save("concept-fleet.svg", "A hub and three replicas", 276, fleet())
    save("concept-waiting.svg", "Lock-step and K-Pool", 224, waiting())
    save("concept-buffer.svg", "Eight adapters and their buffers", 204, buffer())
    save("concept-round.svg", "A round, from the hub's order to the applied mean", 312, one_round())


if __name__ == "__main__":
    main()
