"""An exported folder on the Hugging Face hub."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tsugi_kpool.errors import ConfigError, MachineError

UPLOAD_TIMEOUT_S = 6 * 3600


def check_name(name: str) -> None:
    """Whether the hub could have a repository of this name.

    Raises:
        ConfigError: it could not.
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ConfigError([f"--push {name}: {error}"]) from error
    if "/" not in name:
        raise ConfigError([f"--push {name}: the name needs its owner, such as USER/{name}"])


def push(folder: Path, name: str) -> None:
    """Upload a folder's files with the hub's own command; a repository that is not there yet is made, private.

    In a process of its own: which errors its HTTP client raises changes from version to version; that the last line
    says what is wrong does not.

    Raises:
        MachineError: the hub does not answer, or does not take them.
    """
    command = [sys.executable, "-m", "huggingface_hub.cli.hf", "upload", name, str(folder), "--private", "--quiet"]
    environment = {**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    try:
        result = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=UPLOAD_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise MachineError(f"--push {name}: no end within {UPLOAD_TIMEOUT_S} s; {folder} is whole") from error
    if result.returncode:
        said = [line.strip() for line in f"{result.stdout}\n{result.stderr}".splitlines() if line.strip()]
        reason = said[-1] if said else f"exit code {result.returncode}"
        raise MachineError(
            f"--push {name}: {reason} (`hf auth login` or HF_TOKEN says who you are); {folder} is whole"
        )
