"""Invariants of a simulated fleet (docs/design.md rules 1 and 2). Each check returns texts of what does not hold."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING

from tsugi_kpool.core.effects import FleetStage
from tsugi_kpool.core.hub.ranges import remove
from tsugi_kpool.core.hub.refusals import Kind
from tsugi_kpool.core.journal import parse
from tsugi_kpool.core.messages import Beat, LeaseRequest, Vitals
from tsugi_kpool.core.records import RoundCommitted, RoundFired

from .replica import Replica, tokens_of

if TYPE_CHECKING:
    from .fleet import Fleet

OVERTAKEN = {(Kind.OLD, Beat), (Kind.IDENTITY, Beat), (Kind.IDENTITY, Vitals), (Kind.IDENTITY, LeaseRequest)}


def check_agreement(fleet: Fleet) -> list[str]:
    """Check rule 1: replicas at the same version have exactly the same anchors.

    The fleet compares at every commit; this adds the differences found there to those of now.
    """
    found = list(fleet.differences)
    for replica in fleet.replicas:
        if replica.number in fleet.hub.quarantined:
            continue
        if tuple(replica.anchor) != fleet.history[replica.version]:
            found.append(f"replica {replica.number} has left the anchors of version {replica.version}")
    return found


def check_accounting(fleet: Fleet) -> list[str]:
    """Check rule 2: nothing trained is lost or counted twice, and at the end of a run nothing is left over."""
    found = [problem for replica in fleet.replicas for problem in _own_books(replica)]
    found += _data(fleet)
    for replica in fleet.there:
        member = fleet.hub.members.get(replica.number)
        if member is not None and replica.version == fleet.hub.rounds.version:
            committed = sum(replica.ledger.committed)
            if member.committed_tokens != committed:
                found.append(f"replica {replica.number}: hub knows {member.committed_tokens} of {committed} tokens")
    if fleet.hub.stage is FleetStage.FINISHED:
        found += [problem for replica in fleet.there for problem in _leftovers(replica)]
    return found


def check_refusals(fleet: Fleet) -> list[str]:
    """Check that an honest fleet is never refused: whatever the guard refuses is then a fault of the guard.

    Two things are allowed where messages may change their order: beats that newer ones have overtaken, and messages
    that have overtaken their sender's Hello. The latter also happens when a hub dies with a Hello: the next hub hears
    a beat before the Hello is repeated.
    """
    overtaken = set() if fleet.link.ordered and not fleet.hub_host.crashed else OVERTAKEN
    refused = fleet.hub_host.refused
    return [
        f"{kind.__name__}, {why}: {refused[why, kind]} times" for why, kind in refused if (why, kind) not in overtaken
    ]


def _own_books(replica: Replica) -> list[str]:
    """Check a replica's books: for each adapter produced = committed + discarded + buffered, in tokens and in
    values."""
    found = []
    name, ledger = f"replica {replica.number}", replica.ledger
    tokens = sum(tokens_of(start, stop) for start, stop in replica.trained)
    for adapter, produced in enumerate(ledger.produced):
        buffered = replica.live[adapter] - replica.anchor[adapter]
        expected = tokens - replica.missed_tokens[adapter]
        if produced != expected:
            found.append(f"{name}, adapter {adapter}: {produced} tokens in the ledger, {expected} trained")
        if not 0 <= ledger.committed[adapter] + ledger.discarded[adapter] <= produced:
            found.append(f"{name}, adapter {adapter}: more committed than produced")
        if replica.shipped[adapter] + buffered != (replica.walked - replica.missed[adapter]) * (adapter + 1):
            found.append(f"{name}, adapter {adapter}: values shipped and buffered are not the values produced")
        if not ledger.buffered(adapter) and (buffered or ledger.steps[adapter]):
            found.append(f"{name}, adapter {adapter}: something is buffered without weight")
    return found


def _data(fleet: Fleet) -> list[str]:
    """Check that every position of the data order is trained on at most once, and that a regular end misses none."""
    if fleet.replayed:
        return []  # tests of faults look at every incarnation themselves
    ranges = sorted(each for replica in fleet.replicas for each in replica.trained)
    found = [
        f"positions [{second[0]}, {first[1]}) were trained on twice"
        for first, second in pairwise(ranges)
        if second[0] < first[1]
    ]
    covered, total = sum(stop - start for start, stop in ranges), fleet.plan.samples
    if fleet.hub.stage is FleetStage.FINISHED and not fleet.hub.interrupted and covered != total:
        found.append(f"{covered} of {total} positions were trained on")
    return found + _durable(fleet, [(start, stop) for start, stop in ranges])


def _durable(fleet: Fleet, trained: list[tuple[int, int]]) -> list[str]:
    """Check that what the hub takes for durable was trained on, and that at the end all of it is durable."""
    durable, covered = fleet.hub.leases.durable(), list(trained)
    for start, stop in durable:
        remove(covered, start, stop)
    rest = sum(stop - start for start, stop in trained) - sum(stop - start for start, stop in covered)
    if rest != sum(stop - start for start, stop in durable):
        return [f"the hub takes samples for durable that nobody has trained on: {durable}"]
    if fleet.hub.stage is FleetStage.FINISHED and covered:
        return [f"trained on and never durable: {covered}"]
    return []


def _leftovers(replica: Replica) -> list[str]:
    if replica.live != replica.anchor or replica.ledger.committed != replica.ledger.produced:
        return [f"replica {replica.number}: something was not committed when the run finished"]
    return []


def check_shared(fleet: Fleet) -> list[str]:
    """Check what an exchange has reduced: each committed round's anchors are those before it and its parts' mean; and
    the hub has counted, of every process that ever was, exactly the parts that are in committed rounds."""
    if fleet.exchange is None:
        return []
    found, tokens, durable = list[str](), Counter[str](), dict[str, int]()
    for version, key in enumerate(_committed(fleet), 1):
        shared = fleet.exchange.kept.get(key)
        if shared is None:
            continue  # of one member, which needs no exchange
        before, after = fleet.history[version - 1 : version + 1]
        means = zip(shared.fire.adapters, shared.result.means, strict=True)
        if any(after[adapter] != before[adapter] + mean for adapter, mean in means):
            found.append(f"version {version} is not the one before and the mean of its parts")
        for who, weight, until in zip(shared.incarnations, shared.tokens, shared.durables, strict=True):
            tokens[who] += weight
            durable[who] = max(durable.get(who, 0), until)
    for member in [*fleet.hub.members.values(), *fleet.hub.past]:
        who = member.hello.incarnation
        if member.committed_tokens < tokens[who] or member.durable_samples < durable.get(who, 0):
            found.append(f"{who}: {tokens[who]} tokens counted, the hub knows {member.committed_tokens}")
        if who in tokens and len(fleet.replicas) > 1 and member.durable_samples > _most(fleet, who):
            found.append(f"{who}: {member.durable_samples} samples durable, {_most(fleet, who)} trained")
    return found


def _committed(fleet: Fleet) -> list[tuple[int, int]]:
    """Generation and round of each version, by the journal."""
    entries = [entry.record for entry in parse(bytes(fleet.hub_host.journal)).entries]
    fired = {each.fire.round: each.fire for each in entries if isinstance(each, RoundFired)}
    commits = [fired[each.round] for each in entries if isinstance(each, RoundCommitted)]
    return [(fire.generation, fire.round) for fire in commits]


def _most(fleet: Fleet, incarnation: str) -> int:
    """Samples that a process has trained on."""
    past: list[Replica] = [each.replica for each in getattr(fleet, "past", ())]
    return max(each.progress.samples for each in [*fleet.replicas, *past] if each.incarnation == incarnation)
