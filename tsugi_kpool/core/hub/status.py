"""The fleet's status, from the hub's state: what the console, `sideband status` and the summary show."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from tsugi_kpool.core.effects import FleetStage
from tsugi_kpool.core.messages import FleetStatus, Refused, ReplicaStatus
from tsugi_kpool.core.rounds.link_cost import AutoK
from tsugi_kpool.core.rounds.trigger import decide
from tsugi_kpool.core.settings import KPool, Trigger

from .goodput import goodput, goodput_now, mean_loss
from .health import HealthVerdict, judge
from .leasing import samples_trained, tokens_trained
from .members import Member
from .slot_requests import vacancy, wants_adapter
from .state import HubState

MOST_PAIRS = 2
"""Pairs of replicas that do not reach each other, of those that are named."""
SILENT_S = 5.0
"""A replica that has not beaten for this long is shown as silent."""


def fleet_status(hub: HubState, now_s: float) -> FleetStatus:
    """Draw up the status at `now_s` (the hub's monotonic seconds)."""
    members = [hub.members[replica] for replica in sorted(hub.members)]
    beats = [member.beat for member in members if member.beat]
    everybody = [*members, *hub.past]
    tokens = tokens_trained(hub)
    rate = sum(member.tokens_per_s() for member in members if member.lost is None)
    committed = sum(member.committed_tokens for member in everybody)
    target = decide(
        hub.plan.kpool, 0, max(1, len(hub.present)), True, hub.rounds.noise, hub.rounds.pace or None
    ).target
    rows = tuple(_replica_status(hub, member, committed, target, now_s) for member in members)
    lately = hub.refusals.lately(now_s)
    verdict = _verdict(hub, rows, lately)
    pooled = hub.pooled(hub.rounds.due()) if members else 0
    return FleetStatus(
        run=hub.plan.run,
        stage=FleetStage.INTERRUPTED if hub.over and hub.interrupted and not hub.stopped_early else hub.stage,
        expected=hub.plan.replicas,
        generation=hub.generation,
        version=hub.rounds.version,
        elapsed_s=now_s - hub.started_s,
        samples_done=samples_trained(hub),
        replayed=hub.leases.replayed,
        paused_s=None if hub.paused_s is None else now_s - hub.paused_s,
        samples_total=hub.plan.samples,
        held_out=hub.plan.held_out,
        eta_s=_eta_s(hub),
        tokens=tokens,
        tokens_per_s=rate,
        goodput=goodput(beats),
        goodput_now=goodput_now(members),
        lockstep_tokens=hub.stragglers.tax.lockstep_tokens(tokens),
        tax_recovered=hub.stragglers.tax.recovered(),
        loss=mean_loss(member.beat for member in hub.live() if member.beat),
        firing=hub.rounds.in_flight.adapters if hub.rounds.in_flight else (),
        rounds=dict(hub.rounds.by_reason),
        aborted=hub.rounds.aborted,
        pool_text=pool_text(hub.plan.kpool, hub.rounds.selection.auto),
        trigger_text=trigger_text(hub.plan.kpool),
        replicas=rows,
        joined=len(rows),
        refused=dict(hub.refusals.counts),
        refused_of=hub.refusals.named(lately),
        reduced=hub.rounds.reduced_on,
        health=verdict.health,
        health_reasons=verdict.reasons,
        min_replicas=hub.plan.min_replicas,
        pooled=pooled,
        target=target,
        variance=_variance(hub, pooled),
        insecure=hub.plan.insecure,
        interrupted=hub.interrupted,
        eps=None if isinstance(hub.plan.kpool.eps, str) else hub.plan.kpool.eps,
    )


def _verdict(hub: HubState, rows: tuple[ReplicaStatus, ...], lately: Mapping[str, int]) -> HealthVerdict:
    """How well the fleet is."""
    contact = hub.contact
    unformed = "; ".join(list(contact.unreached.values())[:MOST_PAIRS]) or contact.unformed
    if unformed and any(member.generation != hub.generation for member in hub.live()):
        unformed = f"no group forms: {unformed}"
    named = hub.refusals.named(lately)
    return judge(hub.stage, rows, hub.plan.min_replicas, hub.failure, lately, named, unformed, contact.unheard)


def status_for_askers(hub: HubState, now_s: float) -> FleetStatus:
    """Draw up the status for those who ask over the sideband: with what a machine wants to know before it joins."""
    place = vacancy(hub, now_s)
    return msgspec.structs.replace(
        fleet_status(hub, now_s),
        about=dict(hub.slots.about),
        exchange=bool(hub.slots.exchange),
        wants_adapter=wants_adapter(hub),
        no_place=place.reason if isinstance(place, Refused) else "",
    )


def _variance(hub: HubState, pooled: int) -> float | None:
    """What the convergence trigger compares with eps, for the pool as it stands."""
    if hub.plan.kpool.trigger is not Trigger.CONVERGENCE or pooled < 1:
        return None
    return hub.rounds.noise.needed(float(pooled))


def pool_text(kpool: KPool, auto: AutoK | None) -> str:
    """The pool in a few words; with `kpool.k=auto`, K is the one that it has chosen."""
    k = f"{auto.usual} (auto)" if auto is not None else str(kpool.k)
    return f"K={k} of N={kpool.n}, {kpool.mode}, {kpool.payload}"


def trigger_text(kpool: KPool) -> str:
    """The trigger in a few words."""
    bounds = f"{kpool.min_steps}-{kpool.max_steps} steps"
    if kpool.trigger is Trigger.COUNT:
        return f"count {kpool.count} in {bounds}"
    return f"convergence eps={kpool.eps} in {bounds}"


def _replica_status(hub: HubState, member: Member, committed: int, target: float, now_s: float) -> ReplicaStatus:
    lag_steps, lag_s = hub.frontier.lag(member.steps, now_s)
    beat = member.beat
    training = hub.stage is FleetStage.TRAINING and not member.drained and member.lost is None
    known = hub.stragglers.of(member.hello.replica, now_s)
    vitals = known.vitals
    samples, tokens = member.trained(hub.plan.kpool.n)
    return ReplicaStatus(
        replica=member.hello.replica,
        host=member.hello.host,
        state=_state(hub, member, now_s),
        steps=member.steps,
        samples=samples,
        tokens=tokens,
        tokens_per_s=member.tokens_per_s(),
        step_s=beat.step_s if beat else 0.0,
        lag_s=lag_s if training else 0.0,
        lag_steps=lag_steps if training else 0,
        fill=_fill(hub, member, target / max(1, len(hub.present))),
        share=member.committed_tokens / committed if committed else 0.0,
        sent_bytes=beat.sent_bytes if beat else 0,
        silent_s=now_s - member.heard_s,
        received_bytes=beat.received_bytes if beat else 0,
        slowness=known.slowness,
        jitters=known.jitters,
        drift=known.drift,
        drift_error=known.drift_error,
        rtt_s=vitals.rtt_s if vitals else None,
        clock_offset_s=vitals.offset_s if vitals else None,
        up_bytes=vitals.up_bytes if vitals else 0,
        down_bytes=vitals.down_bytes if vitals else 0,
    )


def _state(hub: HubState, member: Member, now_s: float) -> str:
    if hub.failed_replica == member.hello.replica:
        return "failed"
    if member.gone:
        return "done"
    if member.lost is not None:
        return "quarantined" if member.hello.replica in hub.quarantined else "left"
    if now_s - member.heard_s > SILENT_S:
        return "silent"
    return member.beat.activity if member.beat else "joining"


def _fill(hub: HubState, member: Member, part: float) -> float:
    """This replica's buffered steps for the adapters that are due, against its part of the target."""
    beat = member.beat
    if beat is None or not beat.pooled:
        return 0.0
    return min(1.0, min([beat.pooled[a] for a in hub.rounds.due()]) / part)


def _eta_s(hub: HubState) -> float | None:
    """Seconds until the data is used up at the rate since training began."""
    beats = [m.beat for m in hub.live() if m.beat and m.beat.samples]
    if not beats or hub.stage is not FleetStage.TRAINING or not hub.plan.samples:
        return None
    left = hub.leases.left + sum(max(0, hub.leases.held(beat.replica) - beat.samples) for beat in beats)
    per_s = sum(beat.samples / max(beat.trained_s, 1e-9) for beat in beats)
    return left / per_s if per_s > 0 else None
