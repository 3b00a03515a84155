"""From a command line to a run that can be started: settings, data, the checkpoint it goes on from, its directory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from tsugi_cli.config.compose import compose, config_hash, read_resolved, resolved_yaml
from tsugi_cli.config.spec import RunSpec
from tsugi_cli.finetune.data import import_function, load_splits, total_samples
from tsugi_cli.record.resumed import Resumed, resumed_of
from tsugi_cli.record.run_dir import RunPaths, create, write_atomically

from .limits import open_enough
from .plan import Plan, make_plan
from .resume import adopt, asked, fitted, resume


@dataclass(frozen=True)
class Request:
    """A run that has been checked and not begun."""

    spec: RunSpec
    n_train: int
    """Training samples that there are."""
    fingerprint: str
    """Hash of the data."""
    resumed: Resumed | None
    unbuilt: str | None = None
    """`data.builder`, where it has not been called: what there is to train on is then not known yet."""

    @staticmethod
    def read(overrides: Sequence[str], dry_run: bool = False) -> Request:
        """What a user has typed.

        Args:
            overrides: The command line.
            dry_run: Run nothing of the user's: `data.builder` is not called, and believed to do what it is asked for.

        Raises:
            ConfigError: with all mistakes.
            DataError: the data cannot be trained on, or is another than that of the run to resume.
        """
        source, words = asked(overrides)
        spec, resumed = (compose(words), None) if source is None else resume(source, words)
        if dry_run and spec.data.builder is not None:
            if resumed is not None:
                resumed = fitted(resumed, None, total_samples(spec, spec.data.n_train))
            return Request(spec, spec.data.n_train, "", resumed, spec.data.builder)
        splits = load_splits(spec.data)
        if spec.data.scorer is not None:
            import_function(spec.data.scorer, "data.scorer")  # what is missing is said before anything starts
        n_train, fingerprint = len(splits.train), splits.fingerprint()
        if resumed is not None:
            resumed = fitted(resumed, fingerprint, total_samples(spec, n_train))
        return Request(spec, n_train, fingerprint, resumed)

    @staticmethod
    def of(paths: RunPaths) -> Request:
        """That of an existing run directory.

        Raises:
            EnvironmentError_: this process may open too few files for it.
            LaunchError: its configuration was changed.
            DataError: its data cannot be trained on any more.
        """
        spec = read_resolved(paths)
        open_enough(spec.topology.replicas + spec.topology.spare)
        splits = load_splits(spec.data)
        return Request(spec, len(splits.train), splits.fingerprint(), resumed_of(paths))

    def settle(self, now: datetime) -> RunPaths:
        """Make the run's directory, which holds all that its workers need.

        Raises:
            ConfigError: it cannot be made where it is to be.
            EnvironmentError_: there is no room, or this process may open too few files for it.
        """
        open_enough(self.spec.topology.replicas + self.spec.topology.spare)
        paths = create(Path(self.spec.runs_dir), self.spec.name, now)
        write_atomically(paths.config, resolved_yaml(self.spec))
        write_atomically(paths.config_hash, config_hash(self.spec) + "\n")
        if self.resumed is not None:
            adopt(self.resumed, paths)
        return paths

    def plan(self, paths: RunPaths) -> Plan:
        """What will be started."""
        plan = make_plan(self.spec, paths, self.n_train, self.resumed)
        if self.unbuilt is None:
            return plan
        asked_for = f"as asked of {self.unbuilt}: a dry run does not call it, so what it makes is not known"
        unknown = {"data": f"{self.n_train} training samples, {asked_for}"}
        if self.resumed is not None:
            unknown["resumes"] = f"{plan.facts['resumes']}; whether the data is the same is not known"
        return replace(plan, facts=plan.facts | unknown)

    def notes(self) -> list[str]:
        """What a user should know before the run begins."""
        found = [f"note: {note}" for note in self.spec.kpool.notes()]
        if self.spec.topology.here == 0:
            found.append("note: no replica trains on this machine, so there will be no checkpoints")
        if self.resumed is None:
            return found
        topology = self.spec.topology
        here = topology.replicas if topology.here is None else topology.here
        more = self.resumed.notes(topology.replicas, here)
        return [self.resumed.text(), *(f"note: {note}" for note in more), *found]
