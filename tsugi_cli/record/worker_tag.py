"""Tags a traceback with its worker: torchrun keeps the first failure of a replica, but not which worker it was."""

from __future__ import annotations

import re

SIGNATURE = "(worker {worker} of its replica)"


def sign(error: BaseException, worker: int) -> None:
    """Add a worker's number to the end of its traceback."""
    error.add_note(SIGNATURE.format(worker=worker))


def signed(text: str) -> tuple[str, int | None]:
    """Return a traceback without its tag, and the tagged worker; None when there is no tag."""
    pattern = re.escape(SIGNATURE).replace(re.escape("{worker}"), r"(\d+)")
    match = re.search(rf"\n?^{pattern}$", text, re.MULTILINE)
    return (text, None) if match is None else (text.replace(match[0], ""), int(match[1]))
