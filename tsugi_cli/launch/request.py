"""The request for a run, from the command line: settings, data, the checkpoint to resume, the directory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from tsugi_cli.config import idle
from tsugi_cli.config.compose import compose, config_hash, read_resolved, resolved_yaml
from tsugi_cli.config.spec import RunSpec
from tsugi_cli.config.training import trailing
from tsugi_cli.data import report
from tsugi_cli.data.facts import Facts
from tsugi_cli.finetune.data import total_samples
from tsugi_cli.finetune.functions import import_function
from tsugi_cli.finetune.model import local_folder
from tsugi_cli.finetune.ready import checked, known
from tsugi_cli.hosts.meeting import Meeting
from tsugi_cli.record.atomic import write_atomically, write_json
from tsugi_cli.record.resumed import Resumed, resumed_of
from tsugi_cli.record.run_dir import RunPaths, create
from tsugi_kpool.about import about

from .estimate import shapes
from .limits import open_enough
from .lora_sizes import without_module
from .named import check_function
from .others import check_machines, meeting_of
from .plan import Plan, make_plan
from .preparing import Onlooker, prepare
from .resume import adopt, asked, fitted, resume


@dataclass(frozen=True)
class RunRequest:
    """A run that is checked and not begun."""

    spec: RunSpec
    n_train: int
    """Prepared training samples; in a dry run, rows."""
    fingerprint: str
    """Hash of the data."""
    resumed: Resumed | None
    unbuilt: str | None = None
    """`data.builder`, if it has not been called: the number of samples is then unknown."""
    facts: Facts | None = None
    """Facts of the prepared data; None if a dry run has found none."""
    rows: dict[str, int] | None = None
    """Rows of train, eval and test, where a dry run has read them."""
    meeting: Meeting | None = None
    """Where a scheduler's other tasks find this one."""

    @staticmethod
    def read(
        overrides: Sequence[str],
        dry_run: bool = False,
        onlooker: Onlooker | None = None,
        composed: Callable[[RunSpec], object] = lambda _: None,
    ) -> RunRequest:
        """Read what a user has typed, and prepare the data that it names.

        Args:
            overrides: The command line.
            dry_run: Prepare nothing, and run nothing of the user's: files are read and checked, `data.builder` is not
                called, and believed to do what it is asked for.
            onlooker: Who waits for it.
            composed: Called with the settings before anything is prepared.

        Raises:
            ConfigError: with all mistakes.
            DataError: the data cannot be trained on, or is another than that of the run to resume.
            MachineError: the model cannot be had, or there is no place for it or for the data.
            LaunchError: a machine of `topology.hosts` cannot take part.
            Stopped: the user wants to stop.
        """
        source, words = asked(overrides)
        spec, resumed = (compose(words), None) if source is None else resume(source, words)
        if spec.evaluate.metric is not None:
            check_function(spec.evaluate.metric, "evaluate.metric")
        if dry_run:
            return RunRequest._unprepared(spec, resumed)
        if spec.data.scorer is not None:
            import_function(spec.data.scorer, "data.scorer")  # what is missing is said before anything starts
        composed(spec)
        meeting = meeting_of(spec)
        check_machines(spec)
        facts = prepare(spec, onlooker or Onlooker())
        if resumed is not None:
            resumed = fitted(resumed, facts.fingerprint, total_samples(spec, facts.n_train))
        return RunRequest(spec, facts.n_train, facts.fingerprint, resumed, facts=facts, meeting=meeting)

    @staticmethod
    def _unprepared(spec: RunSpec, resumed: Resumed | None) -> RunRequest:
        """Return the request of a dry run: from prepared data if there are any, else from the rows in the files."""
        facts = known(spec)
        parts: dict[str, int] | None = None
        if facts is None and spec.data.builder is None:
            parts = checked(spec)
            n_train, fingerprint = parts["train"], None
        else:
            n_train, fingerprint = (spec.data.n_train, None) if facts is None else (facts.n_train, facts.fingerprint)
        if spec.data.scorer is not None and spec.data.builder is None:
            import_function(spec.data.scorer, "data.scorer")
        if resumed is not None:
            resumed = fitted(resumed, fingerprint, total_samples(spec, n_train))
        unbuilt = spec.data.builder if facts is None else None
        return RunRequest(spec, n_train, fingerprint or "", resumed, unbuilt, facts, parts)

    @staticmethod
    def of(paths: RunPaths) -> RunRequest:
        """Return the request of an existing run directory.

        Raises:
            MachineError: this process may open too few files for it.
            LaunchError: its configuration was changed.
            DataError: its data cannot be trained on any more.
        """
        spec = read_resolved(paths)
        open_enough(spec.topology.replicas + spec.topology.spare)
        facts = Facts.parse(paths.prepared.read_bytes()) if paths.prepared.exists() else prepare(spec, Onlooker())
        return RunRequest(spec, facts.n_train, facts.fingerprint, resumed_of(paths), facts=facts)

    def settle(self, now: datetime) -> RunPaths:
        """Make the run's directory, with all that its workers need.

        Raises:
            ConfigError: it cannot be made where it is to be.
            MachineError: there is no room, or this process may open too few files for it.
        """
        open_enough(self.spec.topology.replicas + self.spec.topology.spare)
        paths = create(Path(self.spec.runs_dir), self.spec.name, now)
        write_atomically(paths.config, resolved_yaml(self.spec))
        write_atomically(paths.config_hash, config_hash(self.spec) + "\n")
        if self.facts is not None:
            keep(self.facts, paths)
        if self.resumed is not None:
            adopt(self.resumed, paths)
        return paths

    def plan(self, paths: RunPaths) -> Plan:
        """Return the plan."""
        plan = make_plan(self.spec, paths, self.n_train, self.resumed)
        plan = replace(plan, hub=replace(plan.hub, about=about(), data=self.fingerprint))
        if self.facts is not None:
            plan = replace(plan, hub=replace(plan.hub, held_out=self.facts.n_eval + self.facts.n_test))
        if self.unbuilt is None:
            return replace(plan, facts=plan.facts | {"data": f"{self._parts()}; {plan.facts['data']}"})
        asked_for = f"as asked of {self.unbuilt}: a dry run does not call it, so what it makes is not known"
        unknown = {"data": f"{self.n_train} training samples, {asked_for}"}
        if self.resumed is not None:
            unknown["resumes"] = f"{plan.facts['resumes']}; whether the data is the same is not known"
        return replace(plan, facts=plan.facts | unknown)

    def _parts(self) -> str:
        """What the data have been cut into, in words."""
        if self.facts is not None:
            return report.parts_words(self.facts.report["samples"], "samples")
        return report.parts_words(self.rows or {"train": self.n_train}, "rows")

    def tokens(self) -> float | None:
        """Supervised tokens that the fleet will train on, about; None: nothing is prepared yet."""
        if self.facts is None or not self.n_train:
            return None
        whole = float(self.facts.report["supervised_tokens"])
        return whole * total_samples(self.spec, self.n_train) / self.n_train

    def setting_notes(self) -> list[str]:
        """Return notes about settings that do not do what one might expect, or nothing."""
        spec = self.spec
        most = spec.topology.replicas + spec.topology.spare
        found = [*spec.kpool.notes(), *trailing(spec.train.optimizer, spec.kpool.mode, most), *idle.notes(spec)]
        folder = local_folder(spec.model)
        found += [] if folder is None else without_module(shapes(folder), spec.lora)
        return [f"note: {note}" for note in found]

    def notes(self) -> list[str]:
        """Return notes for the user before the run begins."""
        found = [] if self.facts is None else report.lines(self.facts.report)
        found += self.setting_notes()
        if self.spec.topology.here == 0:
            found.append("note: no replica trains on this machine: checkpoints and adapter come from one that joins")
        if self.resumed is None:
            return found
        more = self.resumed.notes(self.spec.topology.replicas)
        return [self.resumed.text(), *(f"note: {note}" for note in more), *found]


def keep(facts: Facts, paths: RunPaths) -> None:
    """Save in a run's directory where its data are, and what became of the user's rows."""
    facts.write(paths.prepared)
    write_json(paths.data_report, facts.report)
