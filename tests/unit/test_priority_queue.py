"""The order in which the hub handles what it has heard."""

from __future__ import annotations

import msgspec

from tests.unit.test_messages import BEAT
from tsugi_kpool.core.hub.priority_queue import FULL, LEAST_BATCH, USUAL_BATCH, Heard, PriorityQueue
from tsugi_kpool.core.messages import Bye, LeaseRequest


def test_what_somebody_waits_for_comes_first_and_the_rest_in_its_order():
    queue = PriorityQueue()
    others = [Heard(b"a", Bye(seq, 0, "i")) for seq in range(100)]
    urgent = [Heard(b"b", LeaseRequest(1, "i", ticket)) for ticket in range(3)]
    queue.put([*others[:50], *urgent, *others[50:]])
    first = queue.take()
    assert first == urgent + others[:LEAST_BATCH], "the others get their turn even so"
    taken = queue.take()
    assert taken == others[LEAST_BATCH : LEAST_BATCH + USUAL_BATCH]
    while queue:
        taken += queue.take()
    assert taken == others[LEAST_BATCH:]


def test_a_beat_that_is_not_handled_yet_is_replaced_in_its_place():
    queue = PriorityQueue()
    beats = [msgspec.structs.replace(BEAT, steps=steps) for steps in range(3)]
    goodbye = Heard(b"a", Bye(1, 0, "i"))
    queue.put([Heard(b"a", beats[0]), Heard(b"b", beats[0]), goodbye, Heard(b"a", beats[1]), Heard(b"a", beats[2])])
    assert queue.take() == [Heard(b"a", beats[2]), Heard(b"b", beats[0]), goodbye]
    assert queue.replaced == 2
    queue.put([Heard(b"a", beats[1])])
    assert queue.take() == [Heard(b"a", beats[1])], "one that comes later is handled for itself"
    assert not queue


def test_a_queue_that_is_full_says_so():
    queue = PriorityQueue()
    queue.put(Heard(b"a", Bye(seq, 0, "i")) for seq in range(FULL))
    assert queue.full
    queue.take()
    assert not queue.full
