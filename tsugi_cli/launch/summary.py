"""The summary of a run: evaluation sums become shares, the fleet's last status becomes totals."""

from __future__ import annotations

import math
from typing import Any

from tsugi_cli.finetune.model import model_path
from tsugi_cli.record.measures import is_scored, per_token
from tsugi_cli.record.resumed import Resumed
from tsugi_cli.record.run_dir import RunPaths
from tsugi_kpool.core.evaluation import version_in
from tsugi_kpool.core.hub.hub import Hub
from tsugi_kpool.core.messages import Evaluated, FleetStatus, ReplicaStatus

from .request import RunRequest


def summarise(request: RunRequest, paths: RunPaths, hub: Hub, status: FleetStatus, outcome: str) -> dict[str, Any]:
    """Return the content of summary.json, which the closing report shows, too."""
    spec, resumed = request.spec, request.resumed
    stages = {
        stage: [each for (name, _), each in sorted(hub.evaluations.items()) if name == stage]
        for stage in ("base", "trained")
    }
    complete = _complete(stages, spec.topology.replicas, {r for r, m in hub.members.items() if m.lost is not None})
    return {
        "run": paths.root.name,
        "recipe": spec.name,
        "model": str(model_path(spec.model)),
        "outcome": outcome,
        "config_hash": hub.plan.config_hash,
        "seed": spec.seed,
        "evaluation": (
            ({"base": resumed.manifest.base} if resumed and resumed.manifest.base else {})
            | {stage: _measures(each) for stage, each in complete.items()}
        ),
        "evaluations": _while_training(hub),
        "stopped_early": hub.stopped_early,
        "examples": _examples(complete, spec.evaluate.examples),
        "wall_s": round(status.elapsed_s, 2),
        "samples": status.samples_done,
        "samples_total": status.samples_total,
        "tokens": status.tokens + (resumed.manifest.tokens if resumed else 0),
        "resumed": _resumed(resumed) if resumed else None,
        "tokens_per_s": _fleet_rate(hub),
        "goodput": status.goodput,
        "rounds": dict(status.rounds),
        "version": status.version,
        "replayed": status.replayed,
        "skipped": [each.reason for each in hub.skipped.values()],
        "left": [
            {"replica": member.hello.replica, "reason": member.lost}
            for member in [*hub.past, *hub.members.values()]
            if member.lost is not None and member.formed
        ],
        "replicas": [_replica(hub, row) for row in status.replicas],
        "adapter": str(paths.adapter) if paths.adapter.exists() else None,
        "adapter_at": adapter_at(hub),
        "run_dir": str(paths.root),
    }


def evaluated_whole(hub: Hub) -> bool:
    """Return whether every replica of the plan has evaluated its share of the result."""
    return {replica for stage, replica in hub.evaluations if stage == "trained"} >= set(range(hub.plan.replicas))


def adapter_at(hub: Hub) -> list[str]:
    """Return the replicas that have ended with an adapter in their own machine's run directory, with their hosts."""
    ended = [member.hello for _, member in sorted(hub.members.items()) if member.gone and member.formed]
    return [f"replica {each.replica} ({each.host})" for each in ended]


def _while_training(hub: Hub) -> list[dict[str, Any]]:
    """Return what each version measured that was evaluated while training, in their order."""
    by_version = {version_in(stage): each for (stage, _), each in hub.evaluations.items()}
    return [
        {"version": version, "replica": each.replica, **_measures([each])}
        for version, each in sorted((v, each) for v, each in by_version.items() if v is not None)
    ]


def _resumed(resumed: Resumed) -> dict[str, Any]:
    """Return what the run resumed. Totals of samples and tokens include it; rates and rounds do not."""
    manifest = resumed.manifest
    return {
        "parent": str(resumed.parent),
        "checkpoint": resumed.checkpoint,
        "samples": manifest.samples,
        "tokens": manifest.tokens,
        "repeats": resumed.repeats,
    }


def _measures(parts: list[Evaluated]) -> dict[str, float]:
    """Return loss per token and shares of the answered requests, over all replicas' sums. Values that are not finite
    are left out."""
    sums: dict[str, float] = {}
    for part in parts:
        for name, value in part.sums.items():
            sums[name] = sums.get(name, 0.0) + value
    measures: dict[str, float] = {}
    if sums.get("loss_tokens"):
        measures |= per_token(sums)
    answered = sums.get("answered", 0.0)
    named = [name for name in sums if is_scored(name)]
    measures |= {name: sums[name] / answered for name in named if answered}
    return {name: value for name, value in measures.items() if math.isfinite(value)}


def _complete(stages: dict[str, list[Evaluated]], replicas: int, left: set[int]) -> dict[str, list[Evaluated]]:
    """Return the stages with the shares of all replicas that are still there, both stages over the same shares."""
    shares = {stage: {each.replica for each in parts} for stage, parts in stages.items()}
    whole = {stage: known for stage, known in shares.items() if known and known | left >= set(range(replicas))}
    common = set.intersection(*whole.values()) if whole else set()
    return {stage: [each for each in stages[stage] if each.replica in common] for stage in whole}


def _examples(stages: dict[str, list[Evaluated]], most: int) -> list[dict[str, str]]:
    """Return the first examples, base and trained side by side; replicas take turns, as their shares do."""
    if "base" not in stages or "trained" not in stages:
        return []
    pairs = [
        list(zip(base.examples, trained.examples, strict=False))
        for base, trained in zip(stages["base"], stages["trained"], strict=True)
    ]
    found = [each[turn] for turn in range(most) for each in pairs if turn < len(each)]
    return [
        {"request": request, "expected": expected, "base": base, "trained": trained}
        for (request, expected, base), (_, _, trained) in found[:most]
    ]


def _replica(hub: Hub, row: ReplicaStatus) -> dict[str, Any]:
    beat = hub.members[row.replica].beat
    trained_s = beat.trained_s if beat else 0.0
    return {
        "replica": row.replica,
        "steps": beat.steps if beat else 0,
        "samples": row.samples,
        "tokens": row.tokens,
        "tokens_per_s": beat.tokens / trained_s if beat and trained_s else 0.0,
        "busy_s": beat.busy_s if beat else 0.0,
        "trained_s": trained_s,
        "sent_bytes": beat.sent_bytes if beat else 0,
        "share": row.share,
    }


def _fleet_rate(hub: Hub) -> float:
    """Return the fleet's supervised tokens per second, over the time in which it trained."""
    beats = [member.beat for member in hub.members.values() if member.beat]
    longest_s = max((beat.trained_s for beat in beats), default=0.0)
    return sum(beat.tokens for beat in beats) / longest_s if longest_s else 0.0
