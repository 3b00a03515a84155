"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Such as recipe=smollm2_tools model=tiny kpool.k=2 train.lr=1e-3"),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
Json = Annotated[bool, typer.Option("--json", help="JSON lines on stdout; words for people on stderr.")]
Run = Annotated[Path | None, typer.Option("--run", help="Run directory; default: the newest run.")]
