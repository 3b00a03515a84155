"""Where this user's cache and temporary files lie, and who may write to what Tsugi makes."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import platformdirs

from tsugi_kpool.errors import MachineError


def cache_folder() -> Path:
    """Return the user's cache folder. It is not made here.

    Raises:
        MachineError: a user without a home has no such place.
    """
    homeless = "this user has no home directory; XDG_CACHE_HOME=FOLDER names a place to keep models"
    try:
        path = Path(platformdirs.user_cache_dir("tsugi"))
    except RuntimeError as error:
        raise MachineError(homeless) from error
    if not path.is_absolute():  # older platformdirs: "~" of nobody would become a folder of that name right here
        raise MachineError(homeless)
    return path


def temporary_folder() -> str:
    """Return the folder for temporary files.

    Raises:
        MachineError: there is no such place.
    """
    try:
        return tempfile.gettempdir()
    except OSError as error:
        raise MachineError(f"{error.strerror}; TMPDIR=FOLDER names one") from error


def close_to_others() -> None:
    """Set the umask so that other users of the machine cannot write to anything that this process makes.

    Its children inherit that. What the user's own group may do stays the user's decision.
    """
    os.umask(os.umask(0o077) | 0o002)
