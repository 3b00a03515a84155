"""The order in which the hub handles what it has heard."""

from __future__ import annotations

import msgspec

from tests.unit.test_messages import BEAT
from tsugi_kpool.core.hub.inbox import FULL, LEAST_BATCH, USUAL_BATCH, Heard, Inbox
from tsugi_kpool.core.messages import Bye, LeaseRequest


def test_what_somebody_waits_for_comes_first_and_the_rest_in_its_order():
    inbox = Inbox()
    others = [Heard(b"a", Bye(seq, 0, "i")) for seq in range(100)]
    urgent = [Heard(b"b", LeaseRequest(1, "i", ticket)) for ticket in range(3)]
    inbox.put([*others[:50], *urgent, *others[50:]])
    first = inbox.take()
    assert first == urgent + others[:LEAST_BATCH], "the others get their turn even so"
    taken = inbox.take()
    assert taken == others[LEAST_BATCH : LEAST_BATCH + USUAL_BATCH]
    while inbox:
        taken += inbox.take()
    assert taken == others[LEAST_BATCH:]


def test_a_beat_that_is_not_handled_yet_is_replaced_in_its_place():
    inbox = Inbox()
    beats = [msgspec.structs.replace(BEAT, micro_steps=steps) for steps in range(3)]
    goodbye = Heard(b"a", Bye(1, 0, "i"))
    inbox.put([Heard(b"a", beats[0]), Heard(b"b", beats[0]), goodbye, Heard(b"a", beats[1]), Heard(b"a", beats[2])])
    assert inbox.take() == [Heard(b"a", beats[2]), Heard(b"b", beats[0]), goodbye]
    assert inbox.replaced == 2
    inbox.put([Heard(b"a", beats[1])])
    assert inbox.take() == [Heard(b"a", beats[1])], "one that comes later is handled for itself"
    assert not inbox


def test_an_inbox_that_is_full_says_so():
    inbox = Inbox()
    inbox.put(Heard(b"a", Bye(seq, 0, "i")) for seq in range(FULL))
    assert inbox.full
    inbox.take()
    assert not inbox.full
