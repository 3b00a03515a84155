"""Rounds over an exchange: a member sends its part to one process beside the hub, and gets the fleet's mean from it.

    local:  anchor += u,  live += u - sent        u is the exchange's coded mean, the same bytes for all

No member knows another one's address. A part that came too late is no part of u: then `sent` is nothing, and all of
it stays buffered. What coding has lost of the mean stays at the exchange, for the next round of
the same adapters; what it has lost of our own part stays in our live parameters, as ever.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from tsugi_kpool.codec.coding import Bytes
from tsugi_kpool.codec.header import header_bytes
from tsugi_kpool.core.messages import Fire, Generation
from tsugi_kpool.core.rounds.closing import REPORTERS
from tsugi_kpool.core.settings import KPool, Payload
from tsugi_kpool.exchange.client import ExchangeClient, ExchangeError
from tsugi_kpool.exchange.frames import Part, Result
from tsugi_kpool.exchange.reduction import LEFT, check_result, opened

from .collective import CollectiveError, Group
from .local import LocalUpdate
from .reducing import GroupReducer, Reducer, Reduction, Traffic
from .rounds import Contribution, RoundResult, UnusableRound, pack, result_of, sent_of
from .state import Tensors
from .update import UpdateRule


class ExchangeGroup:
    """The members of a generation as one of them sees them: through the exchange.

    Args:
        client: Our connection to it; it outlives the generation.
        order: The generation.
        replica: Ours.
        overtaken: Whether the hub has ordered a newer generation than this one.
    """

    severed = False
    """The hub alone judges who has gone: a connection to the exchange may break and come back."""

    def __init__(
        self, client: ExchangeClient, order: Generation, replica: int, overtaken: Callable[[int], bool]
    ) -> None:
        self.client, self.generation, self.members = client, order.generation, tuple(order.members)
        self.rank, self.world = order.members.index(replica), len(order.members)
        self._overtaken, self._ticket = overtaken, order.ticket
        client.resume()

    def share(self, state: bytes | None, most: int) -> bytes:
        """Hand the fleet's state to the exchange, or get it there.

        Args:
            state: The donor's; None at a newcomer.
            most: Bytes that a state of this pool can have.

        Raises:
            CollectiveError: it did not come in time.
        """
        self.check()
        try:
            if state is None:
                return bytes(self.client.want(self.generation, most))
            self.client.give(self.generation, state, self._ticket)
            return state
        except ExchangeError as error:
            raise CollectiveError(str(error)) from error

    def check(self) -> None:
        """Raise CollectiveError if the fleet has gone on: an order that came before this group was in place has
        interrupted nothing."""
        if self._overtaken(self.generation):
            raise CollectiveError("the hub has ordered another generation")

    def interrupt(self) -> None:
        self.client.interrupt()

    def close(self) -> None:
        """Keep the connection: the next generation's group goes on with it."""


class ExchangeReducer:
    """Sums the rounds of a generation at the exchange.

    Args:
        group: The generation's.
        update: Our anchors, and what a round does to them.
        settings: The pool's.
    """

    def __init__(self, group: ExchangeGroup, update: UpdateRule, settings: KPool) -> None:
        self._group, self._update, self._settings = group, update, settings
        self.rank, self.members = group.rank, group.world
        if isinstance(update, LocalUpdate):
            update.divide(None, self.rank)

    def reduce(self, contribution: Contribution, fire: Fire) -> Reduction:
        return self._reduced(contribution, fire, pack(contribution, self._settings.payload).numpy())

    def fetch(self, contribution: Contribution, fire: Fire) -> Reduction:
        """Get what a round amounts to that was committed before we have given a part of it.

        Raises:
            CollectiveError: as `reduce`.
        """
        reduction = self._reduced(contribution, fire, np.empty(0, np.uint8))
        if not reduction.void:
            raise CollectiveError(f"the exchange counts a part of round {fire.round} that we have not given")
        return reduction

    def _reduced(self, contribution: Contribution, fire: Fire, packed: Bytes) -> Reduction:
        client = self._group.client
        client.sequence += 1
        part = part_of(fire, self._group.members, contribution, self._settings, client)
        sent, received, started_s = client.sent, client.received, time.monotonic()
        self._group.check()

        def read(result: Result, raw: bytearray) -> tuple[Result, RoundResult | UnusableRound]:
            check_result(part, result)
            codes = packed[header_bytes(len(part.adapters)) :]
            got = np.frombuffer(raw, np.uint8)
            return result, outcome_of(contribution, self.rank, self._update, part, result, got, codes)

        try:
            result, outcome = client.reduce_with(part, packed.data, read)
        except ExchangeError as error:
            raise CollectiveError(str(error)) from error
        took_s = time.monotonic() - started_s
        traffic = Traffic(packed.size, client.sent - sent, client.received - received, took_s)
        counted = tuple(rank for rank in range(self.members) if rank not in set(result.missed))
        return Reduction(
            outcome,
            traffic,
            first=self.rank in counted[:REPORTERS],
            void=self.rank not in counted,
            counted=tuple(part.members[rank] for rank in counted),
            durables=result.durables,
            receipt=client.receipt,
        )

    def check(self, owner: int, checkers: tuple[int, ...]) -> tuple[tuple[int, ...], Traffic]:
        del owner, checkers
        raise CollectiveError("a check of a round that has no owners here")

    def shown(self) -> None:
        """Return nothing: members tell each other nothing here."""

    def committed(self, round: int) -> None:
        self._group.client.settled = round


def outcome_of(
    contribution: Contribution, rank: int, update: UpdateRule, part: Part, result: Result, raw: Bytes, codes: Bytes
) -> RoundResult | UnusableRound:
    """Return what a result is to one of its round's members. Where its part came too late nothing of it was sent.

    Args:
        contribution: The member's.
        rank: Its place.
        update: Its anchors, and what a round does to them.
        part: What it has said of its part.
        result: What the exchange says of the round.
        raw: What came with that.
        codes: Its part, as it was coded.
    """
    if result.unusable:
        return UnusableRound(result.unusable, len(part.members) - len(result.missed))
    headers, mean = opened(part, result, raw)
    norm2 = None if result.plain_norm2 is None else np.array(result.plain_norm2)
    if rank in result.missed:
        sent = torch.zeros_like(contribution.delta)
    else:
        sent = sent_of(contribution, codes, Payload(part.payload), part.keep)
    return result_of(contribution, update, headers, mean, norm2, sent, alone=False)


def left_at(group: ExchangeGroup, anchor: Tensor) -> Tensors:
    """Return what the exchange has left over after the newest round that is committed here, as a checkpoint has it;
    nothing where it has nothing, or is not reached: then at most half a quantum of each mean is lost, once.

    Args:
        group: The generation's.
        anchor: [N, P] of ours.
    """
    adapters, size = anchor.shape
    try:
        whole = group.client.left_over(group.generation, size, adapters)
    except ExchangeError:
        return {}
    return {LEFT: torch.frombuffer(whole, dtype=torch.uint8).reshape(adapters, -1)} if whole else {}


def reducer_of(
    group: Group | ExchangeGroup,
    update: UpdateRule,
    settings: KPool,
    sign: Callable[[int, int, bytes], bytes],
) -> Reducer:
    """Return what sums the rounds of this generation; `sign` is `Uplink.sign`."""
    if isinstance(group, ExchangeGroup):
        return ExchangeReducer(group, update, settings)
    return GroupReducer(group, update, settings, sign)


def part_of(
    fire: Fire, members: tuple[int, ...], contribution: Contribution, settings: KPool, client: ExchangeClient
) -> Part:
    """Return what is said of our part. A Fire comes without its members: they are the generation's."""
    return Part(
        generation=fire.generation,
        round=fire.round,
        version=fire.version,
        adapters=tuple(fire.adapters),
        members=members,
        size=contribution.delta.shape[1],
        payload=str(Payload(settings.payload)),
        keep=settings.error_feedback,
        ticket=fire.ticket,
        settled=fire.shared,
        incarnation=client.incarnation,
        sequence=client.sequence,
        durable=contribution.shipment.durable,
    )
