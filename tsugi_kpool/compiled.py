"""The hub's decisions and the simulator as machine code: the same sources, compiled by mypyc, in half of the time.

    python -m tsugi_kpool.compiled        compiles once for these sources and this Python; takes a minute or two
    TSUGI_COMPILED=1 tsugi ...            uses it

Worth it where one process does the work of a thousand replicas: simulating them, or holding their sideband. Nothing
of it is needed otherwise, and no result depends on it. What was compiled of other sources is never used. Python's own
classes cannot derive from compiled ones, and patching a module changes nothing inside it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

from .errors import EnvironmentError_

VARIABLE = "TSUGI_COMPILED"
HOME = Path(__file__).resolve().parent
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX") or ".so"
TIMEOUT_S = 900.0
CORE = (
    "bucket", "hub/committing", "hub/firing", "hub/guard", "hub/health", "hub/hub", "hub/joining", "hub/lease_book",
    "hub/leasing", "hub/leaving", "hub/liveness", "hub/members", "hub/orders", "hub/quarantine", "hub/ranges",
    "hub/resumed", "hub/round_book", "hub/saving", "hub/state", "replica/ledger", "replica/stage", "rounds/hold",
    "rounds/noise", "rounds/selection", "rounds/sizing", "rounds/trigger", "slow/change_point", "slow/drift",
    "slow/episode", "slow/pace", "slow/phase", "slow/replica_phase", "slow/slow_link", "slow/tax", "slow/work",
)  # fmt: skip
SIM = ("faults", "fleet", "hub_host", "kernel", "replica", "trainer", "uplink")
FILES = (*(f"core/{name}.py" for name in CORE), *(f"sim/{name}.py" for name in SIM))
"""mypyc takes no modules of msgspec's structs, and stumbles over some others; these are what takes time."""
SETTINGS = "[mypy]\nignore_missing_imports = True\nfollow_imports = skip\n"
"""Types are checked where the sources are checked; here only what is compiled needs to be known."""


def folder() -> Path:
    """Where these sources are, or would be, as machine code of this Python."""
    from platformdirs import user_cache_path

    found = hashlib.sha256(SUFFIX.encode())
    for file in FILES:
        found.update((HOME / file).read_bytes())
    return user_cache_path("tsugi") / "compiled" / found.hexdigest()[:20]


def build() -> Path:
    """Compile, unless that has been done; returns the folder.

    Raises:
        EnvironmentError_: there is no mypyc or no C compiler, or they fail.
    """
    target = folder()
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        work = Path(scratch)
        shutil.copytree(HOME, work / HOME.name, ignore=shutil.ignore_patterns("__pycache__", f"*{SUFFIX}"))
        _compile(work)
        ready = work / "ready"
        ready.mkdir()
        for file in [*work.glob(f"*{SUFFIX}"), *work.glob(f"{HOME.name}/**/*{SUFFIX}")]:  # not those below build/
            name = ".".join(file.relative_to(work).parts).removesuffix(SUFFIX)
            file.rename(ready / f"{name}{SUFFIX}")
        try:
            ready.rename(target)  # all of it at once: two that compile at the same time do not mix
        except OSError:
            if not target.exists():
                raise
    return target


def _compile(work: Path) -> None:
    (work / "mypy.ini").write_text(SETTINGS, encoding="utf-8")
    command = [sys.executable, "-m", "mypyc", "--config-file", "mypy.ini", *(f"{HOME.name}/{file}" for file in FILES)]
    try:
        done = subprocess.run(command, cwd=work, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise EnvironmentError_(f"mypyc has not finished after {TIMEOUT_S:g} s") from None
    if done.returncode:
        said = (done.stdout + done.stderr).strip().splitlines() or ["it said nothing"]
        raise EnvironmentError_(
            f"these sources could not be compiled: {said[-1]} (needs a C compiler and `pip install mypy setuptools`)"
        )


def use() -> bool:
    """Import what is compiled instead of its sources from now on; nothing of it may have been imported before.

    Returns:
        Whether it is there: it has to be compiled for these sources first.
    """
    found = folder()
    if not found.exists():
        return False
    sys.meta_path.insert(0, Finder({file.name.removesuffix(SUFFIX): file for file in found.iterdir()}))
    return True


def used() -> bool:
    """Whether compiled modules are imported."""
    return any(isinstance(finder, Finder) for finder in sys.meta_path)


class Finder(MetaPathFinder):
    """Finds the compiled modules by their names."""

    def __init__(self, files: dict[str, Path]) -> None:
        self._files = files

    def find_spec(
        self,
        name: str,
        path: Sequence[str] | None = None,  # noqa: ARG002
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        """As importlib asks for it."""
        file = self._files.get(name)
        return importlib.util.spec_from_file_location(name, file) if file is not None else None


def use_if_asked() -> None:
    """`use`, if the environment says so, and this is not the command that compiles."""
    if os.environ.get(VARIABLE, "0") == "0" or "tsugi_kpool.compiled" in sys.orig_argv:
        return
    if not use():
        sys.stderr.write(f"{VARIABLE} is set, but nothing is compiled: run `python -m tsugi_kpool.compiled`\n")


if __name__ == "__main__":
    try:
        sys.stdout.write(f"compiled: {build()}\nuse it with {VARIABLE}=1\n")
    except EnvironmentError_ as error:
        raise SystemExit(f"Error: {error}") from None
