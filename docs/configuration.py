"""docs/configuration.md, made of the settings themselves: `python docs/configuration.py --write`."""

from __future__ import annotations

import argparse
import sys
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tsugi_cli.config.describe import Setting, settings  # noqa: E402  (of this tree)

HEAD = """# Configuration

Every setting of `tsugi finetune`, made from the code by `python docs/configuration.py --write`. `tsugi settings
WORD` searches the same on a terminal.

A setting is given as `key=value` on the command line, or stands in a recipe (`recipe=mine.yaml`, `tsugi recipes
copy`). `model=...` and `data=...` alone take a file, a folder, a hub name or one of the names in [conf/](../conf).
A typo is answered with the nearest key. The default is that of the default recipe's groups, before the recipe
changes it: `tsugi finetune --dry-run` prints what holds in the end, and what has no effect there.
**Bold** keys are the basic ones: what somebody sets who knows the model, the data and the machines.
[settings.md](settings.md) says when to change those of `kpool`, with figures.
"""


def cell(text: str) -> str:
    """Text that Markdown leaves alone inside a table."""
    return text.replace("|", "\\|").replace("<", "&lt;")


def row(each: Setting) -> str:
    """One line of a table."""
    key = f"**`{each.key}`**" if each.basic else f"`{each.key}`"
    kind = f"{each.kind}; {each.allowed}" if each.allowed else each.kind
    return f"| {key} | `{cell(each.default)}` | {cell(kind)} | {cell(each.about)} |"


def section(each: Setting) -> str:
    """The group that a setting belongs to."""
    return each.key.partition(".")[0] if "." in each.key else "the run"


def render() -> str:
    """The whole page."""
    parts = [HEAD]
    top = [each for each in settings() if "." not in each.key]
    groups = [("the run", top)]
    groups += [(name, list(found)) for name, found in groupby((s for s in settings() if "." in s.key), section)]
    for name, found in groups:
        parts.append(f"## {name}\n\n| key | default | value | what it does |\n|---|---|---|---|\n")
        parts[-1] += "\n".join(row(each) for each in found) + "\n"
    return "\n".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    page = ROOT / "docs" / "configuration.md"
    if parser.parse_args().write:
        page.write_text(render(), encoding="utf-8")
        return 0
    agrees = page.exists() and page.read_text(encoding="utf-8") == render()
    print("configuration.md agrees" if agrees else "configuration.md disagrees; run with --write")
    return int(not agrees)


if __name__ == "__main__":
    sys.exit(main())
