"""Whose traceback it is: torchrun keeps the first failure of a replica, but not which of its workers failed."""

from __future__ import annotations

import re

SIGNATURE = "(worker {worker} of its replica)"


def sign(error: BaseException, worker: int) -> None:
    """Leave a worker's number at the end of its traceback."""
    error.add_note(SIGNATURE.format(worker=worker))


def signed(text: str) -> tuple[str, int | None]:
    """A traceback without the signature, and the worker whose it is; None when nobody has signed it."""
    pattern = re.escape(SIGNATURE).replace(re.escape("{worker}"), r"(\d+)")
    match = re.search(rf"\n?^{pattern}$", text, re.MULTILINE)
    return (text, None) if match is None else (text.replace(match[0], ""), int(match[1]))
