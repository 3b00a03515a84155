"""How the tasks of a scheduler's job find the launcher, and get a key that it accepts (decision 0045).

Either through a file of mode 0600 in a folder that all machines share, or, where the user has put one and the same
secret into every task's environment, by deriving the keys from it. No key is ever in a command line.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import MutableMapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from tsugi_kpool.errors import ConfigError, LaunchError, MachineError, SidebandError
from tsugi_kpool.sideband import addresses
from tsugi_kpool.sideband import keys as sideband_keys
from tsugi_kpool.sideband.keys import RunKeys, seeded
from tsugi_kpool.sideband.observer import ask_status

from .role import Role

SECRET = "TSUGI_SECRET"
"""Environment variable: the same random text in all tasks of a job."""
SECRET_CHARS = 32
"""Fewest characters of it: `openssl rand -hex 32` gives 64."""
PORT = 51820
"""Where the hub listens unless the user says otherwise, when others must know it without having been told."""
ASK_S = 3.0
"""How long a hub may take to answer whether it is there."""
PAUSE_S = 0.5


@dataclass(frozen=True)
class Meeting:
    """Where the tasks of one job meet."""

    role: Role
    folder: Path
    """runs_dir: all machines share it, unless there is a secret."""
    secret: str | None
    port: int
    """Of the hub; used with a secret."""

    @staticmethod
    def of(role: Role, runs_dir: Path, port: int, environ: MutableMapping[str, str]) -> Meeting:
        """Return the meeting of this job. A secret is taken out of the environment: no process of ours inherits it.

        Args:
            role: Of this task.
            runs_dir: Of the run.
            port: Of the hub; 0: none is set.
            environ: The environment.

        Raises:
            ConfigError: the secret is too short, or does not help, because nobody says where the first task is.
        """
        secret = environ.pop(SECRET, None)
        secret = None if secret is None else secret.strip()  # a secret that came from a file ends with a line feed
        if secret is not None and len(secret) < SECRET_CHARS:
            wanted = f"at least {SECRET_CHARS} characters, such as `openssl rand -hex 32` prints"
            raise ConfigError([f"{SECRET} must have {wanted}; found {len(secret)}"])
        if secret is not None and role.master is None:
            raise ConfigError([f"{SECRET} is set, but MASTER_ADDR, the machine of the first task, is not"])
        return Meeting(role, runs_dir, secret, port or (PORT if secret is not None else 0))

    @property
    def path(self) -> Path:
        """The file that the launcher leaves for the others."""
        return self.folder / f".meet-{self.role.job}.keys"

    def own_keys(self) -> RunKeys | None:
        """Return the hub's keys as the secret gives them, with the address at which the others look for it; None: it
        draws its own. Another job has others."""
        if self.secret is None:
            return None
        keys = seeded(hashlib.sha256(f"{self.role.job}\0{self.secret}".encode()).digest())
        return replace(keys, address=addresses.joined(self.role.master or "", self.port))

    def publish(self, keys: RunKeys) -> None:
        """Leave a member's keys for the others; with a secret they have them.

        Raises:
            MachineError: the file cannot be written.
        """
        if self.secret is not None:
            return
        members = replace(keys, hub_secret="", observer_seed="", owner_seed="")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            sideband_keys.save(members, self.path)
        except OSError as error:
            raise MachineError(f"cannot write {self.path} for the other tasks: {error.strerror}") from error

    def withdraw(self) -> None:
        """Take the file away: the run has ended."""
        if self.secret is None and self.role.leads:
            with suppress(OSError):
                self.path.unlink(missing_ok=True)

    def await_hub(self, timeout_s: float) -> RunKeys:
        """Return a member's keys once the launcher's hub answers to them. A file that an earlier job has left is read
        again and again: nobody answers to it.

        Raises:
            LaunchError: none answers in time.
        """
        deadline_s, reason = time.monotonic() + timeout_s, ""
        while time.monotonic() < deadline_s:
            try:
                keys = self._keys()
                ask_status(keys, ASK_S)
                return keys
            except SidebandError as error:
                reason = str(error)
            time.sleep(PAUSE_S)
        raise LaunchError(f"no launcher was found within {timeout_s:g} s (topology.join_timeout_s): {reason}")

    def _keys(self) -> RunKeys:
        own = self.own_keys()
        if own is not None:
            return replace(own, hub_secret="", observer_seed="", owner_seed="")
        if not self.path.exists():
            shared = f"if the machines do not share that folder, set {SECRET} for all tasks"
            raise SidebandError(f"the first task has not written {self.path}; {shared}")
        return sideband_keys.load(self.path)
