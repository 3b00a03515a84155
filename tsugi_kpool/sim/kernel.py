"""Virtual time: a queue of events, and a channel that delays, loses, repeats and reorders."""

from __future__ import annotations

import heapq
import random
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from .scenario import LinkModel, spread

Call = tuple[float, int, Callable[..., object], tuple[Any, ...]]
"""A scheduled call: time in seconds, number of its scheduling, function, arguments."""


class Kernel:
    """Calls scheduled functions in the order of virtual time; at equal times, the first scheduled first."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.stopped = False
        """Set it to end `run` after the present event."""
        self._queue: list[Call] = []
        self.lane: deque[Call] = deque()
        """Calls that were scheduled in the order of their times, so they need no sorting. For callers with one delay.
        """
        self.scheduled = 0
        """Events scheduled so far."""

    @property
    def handled(self) -> int:
        """Events handled so far."""
        return self.scheduled - len(self._queue) - len(self.lane)

    def after(self, delay_s: float, call: Callable[..., object], *arguments: Any) -> None:
        """Schedule a call `delay_s` from now."""
        self.scheduled += 1
        heapq.heappush(self._queue, (self.now_s + delay_s, self.scheduled, call, arguments))

    def at(self, time_s: float, call: Callable[..., object], *arguments: Any) -> None:
        """Schedule a call at `time_s`, which is not in the past."""
        self.scheduled += 1
        heapq.heappush(self._queue, (time_s, self.scheduled, call, arguments))

    def run(self, until_s: float) -> None:
        """Handle all events up to `until_s`, or until `stopped` is set."""
        queue, lane, pop = self._queue, self.lane, heapq.heappop
        while not self.stopped:
            if lane and (not queue or lane[0] < queue[0]):
                if lane[0][0] > until_s:
                    break
                self.now_s, _, call, arguments = lane.popleft()
            elif queue and queue[0][0] <= until_s:
                self.now_s, _, call, arguments = pop(queue)
            else:
                break
            call(*arguments)
        if not self.stopped:
            self.now_s = max(self.now_s, until_s)


class Channel:
    """Carries control messages. Every `way` (one replica's up, or its down) is a stream of its own."""

    def __init__(self, kernel: Kernel, link: LinkModel, ways: int, draw: random.Random) -> None:
        self._kernel, self._link, self._draw = kernel, link, draw
        self._ordered, self._latency_s = link.ordered, link.latency_s
        self._steady = link.ordered and not link.jitter
        self._newest_s = [0.0] * ways
        self._far_s = link.far.latency_s if link.far is not None else link.latency_s
        self._near = ways // 4 * 2 if link.far is not None else ways
        """Ways with lower numbers belong to replicas on the hub's side. Each replica has two ways."""
        self.sent = 0
        """Messages given to the channel."""
        self.kinds: Counter[type] = Counter()
        """Messages given to the channel, by type."""
        self.newest: dict[type, Any] = {}
        """The newest message of each type."""

    def send(self, way: int, deliver: Callable[..., object], *arguments: Any) -> None:
        """Call `deliver` when the message has arrived; a lossy link may call it never, or twice."""
        self.sent += 1
        kind = type(arguments[0])
        self.kinds[kind] += 1
        self.newest[kind] = arguments[0]
        if self._steady and way < self._near:
            kernel = self._kernel
            kernel.scheduled += 1
            kernel.lane.append((kernel.now_s + self._latency_s, kernel.scheduled, deliver, arguments))
            return
        if self._ordered:
            arrival_s = max(self._newest_s[way], self._kernel.now_s + self._delay_s(way))
            self._newest_s[way] = arrival_s
            self._kernel.at(arrival_s, deliver, *arguments)
            return
        for _ in range(self._copies()):
            self._kernel.after(self._delay_s(way), deliver, *arguments)

    def _delay_s(self, way: int) -> float:
        return (self._latency_s if way < self._near else self._far_s) * spread(self._draw, self._link.jitter)

    def _copies(self) -> int:
        if self._draw.random() < self._link.loss:
            return 0
        return 2 if self._draw.random() < self._link.duplication else 1
