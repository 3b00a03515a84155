"""Every error that Tsugi raises on purpose, and the exit code of each.

    TsugiError                      1  internal: a bug of ours
    ├── ConfigError                 2  a wrong key, value or command line
    ├── DataError                   3  the data cannot be trained on
    ├── MachineError                4  this machine lacks something (a package, a model, a free port)
    ├── LaunchError                 5  a worker did not come up, or the fleet does not match
    ├── TrainingError               6  a worker failed while it trained
    │   ├── RoundError                 a collective failed or timed out
    │   └── FencedError                the run goes on without this process
    │       └── QuarantinedError       because its numbers cannot be
    ├── QuorumError                 7  too few replicas were left for too long
    ├── ExportError                 8  the adapter could not be written or does not verify
    ├── SidebandError              11  the hub does not answer
    └── OverError                  13  the run has ended, and this needs one that goes on

Each error carries its data; the message is one or a few lines that a user can act on.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What a `tsugi` command says to the shell. Documented in docs/exit-codes.md."""

    OK = 0
    INTERNAL = 1
    CONFIG = 2
    DATA = 3
    ENVIRONMENT = 4
    LAUNCH = 5
    TRAINING = 6
    QUORUM = 7
    EXPORT = 8
    STOPPED = 9
    DEGRADED = 10
    UNREACHABLE = 11
    TOO_EARLY = 12
    OVER = 13
    FULL = 14
    INTERRUPTED = 130
    TERMINATED = 143


class TsugiError(Exception):
    """Base of all; `exit_code` is what the command line exits with."""

    exit_code = ExitCode.INTERNAL


class ConfigError(TsugiError):
    """One or more mistakes in the configuration; `problems` holds one text each, all of them at once."""

    exit_code = ExitCode.CONFIG

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class DataError(TsugiError):
    """The data set is missing, malformed, or has nothing to train on."""

    exit_code = ExitCode.DATA


class MachineError(TsugiError):
    """Something outside Tsugi is missing: a package, a model file, the package index."""

    exit_code = ExitCode.ENVIRONMENT


EnvironmentError_ = MachineError
"""The name that it had before, for who still imports it."""


class LaunchError(TsugiError):
    """The fleet did not come up, or a replica does not match the others."""

    exit_code = ExitCode.LAUNCH


class TrainingError(TsugiError):
    """A replica failed during training."""

    exit_code = ExitCode.TRAINING


class RoundError(TrainingError):
    """A round's collective failed; `round` is its number."""

    def __init__(self, round: int, reason: str) -> None:
        super().__init__(f"round {round}: {reason}")
        self.round = round
        self.reason = reason


class FencedError(TrainingError):
    """This process was taken for dead; the run goes on without it. A new one may take its replica's place."""


class QuarantinedError(FencedError):
    """This process sent impossible numbers; the run goes on without it. Look before it is started again."""


class QuorumError(TsugiError):
    """Too few replicas were left to train, for too long."""

    exit_code = ExitCode.QUORUM


class ExportError(TsugiError):
    """The trained adapter could not be written, or what was written is not what was trained."""

    exit_code = ExitCode.EXPORT


class SidebandError(TsugiError):
    """The hub does not answer, or does not let us in."""

    exit_code = ExitCode.UNREACHABLE


class OverError(TsugiError):
    """The run has ended: it can be joined, served and stopped no more."""

    exit_code = ExitCode.OVER
