"""A function on all cores: forks of this process, which find what it holds in their own memory."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from tsugi_kpool.errors import EnvironmentError_
from tsugi_kpool.system import end_with_parent

TURN_S = 0.2
"""How far the work is, is told this often."""
T = TypeVar("T")
Progress = Callable[[int], None]
"""Is told how many rows are done."""

_inherited: Any = None
"""Of a process of the pool: (what it does with a task, the counter of rows that all of them share)."""


def run_all(act: Callable[[int, Progress], T], tasks: int, processes: int, progress: Progress) -> list[T]:
    """`act(task, progress)` for every task, on several processes; results in the tasks' order.

    The processes are forks of this one: they find what `act` holds, a tokenizer above all, in its memory.

    Args:
        act: Called in one of the processes; what it returns is sent here.
        tasks: How many.
        processes: 1: here and now.
        progress: Called here, with the rows that are done altogether.

    Raises:
        EnvironmentError_: a process was killed.
    """
    if processes == 1 or tasks == 1:
        done = [0]

        def told(rows: int) -> None:
            done[0] += rows
            progress(done[0])

        return [act(index, told) for index in range(tasks)]
    context = multiprocessing.get_context("fork")
    counter = context.Value("q", 0)
    with ProcessPoolExecutor(min(processes, tasks), context, _begin, (act, counter)) as pool:
        futures = [pool.submit(_act, index) for index in range(tasks)]
        try:
            _watch(futures, lambda: progress(counter.value))
            return [future.result() for future in futures]
        except BrokenProcessPool as error:
            raise EnvironmentError_(
                "a process that prepared data was killed; most often this machine's memory is too small for it"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _begin(act: Any, counter: Any) -> None:
    global _inherited
    end_with_parent()
    _inherited = act, counter


def _act(index: int) -> Any:
    act, counter = _inherited

    def told(rows: int) -> None:
        with counter.get_lock():
            counter.value += rows

    return act(index, told)


def _watch(futures: Sequence[Future[Any]], turn: Callable[[], None]) -> None:
    """Until all are done, or one has failed."""
    left = set(futures)
    while left:
        done, left = wait(left, TURN_S, FIRST_COMPLETED)
        turn()
        if any(future.exception() for future in done):
            return
