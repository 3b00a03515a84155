"""Settings of all tests, and the fork server from which the commands of process tests come."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator
from functools import cache

import pytest
from hypothesis import settings

from tests.forked import popen
from tsugi_cli.record.run_dir import RunPaths

# A deadline would be a timing assertion, which says more about the neighbours than about the code.
settings.register_profile("tsugi", deadline=None)
settings.load_profile("tsugi")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fresh", action="store_true", help="Start every process anew: nothing is forked.")
    parser.addoption("--rewrite-transcripts", action="store_true", help="Write tests/transcripts/*.txt anew.")


@cache
def fork_server() -> popen.Server:
    """One for this process, from the first test that needs it."""
    return popen.Server()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Around the whole test, so that fixtures of its module are made in the same way."""
    fresh = item.config.getoption("--fresh") or item.get_closest_marker("fresh") or sys.platform != "linux"
    if fresh or not item.get_closest_marker("process"):
        return (yield)
    with popen.asking(fork_server().client):
        return (yield)


def take_one_thread() -> int:
    """Returns how many torch had in this process; 0 where it is not loaded."""
    torch = sys.modules.get("torch")
    if torch is None:
        return 0
    before: int = torch.get_num_threads()
    torch.set_num_threads(1)
    return before


@pytest.fixture(autouse=True, scope="module")
def one_thread_in_the_module() -> Iterator[None]:
    """A second thread only costs with tensors so small: ten times the time beside a busy neighbour.

    For the module, so that its own fixtures have no second one either.
    """
    before = take_one_thread()
    yield
    if before:
        sys.modules["torch"].set_num_threads(before)


@pytest.fixture(autouse=True)
def one_thread(one_thread_in_the_module: None) -> None:
    """Also where torch came later, and after a test that has taken more."""
    take_one_thread()


@pytest.fixture(autouse=True)
def prepared_here(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data are prepared in the test's own process, which has the libraries loaded; not in tests of whole commands."""
    if request.node.get_closest_marker("process") or request.node.get_closest_marker("fresh"):
        return
    from tsugi_cli.launch import preparing

    def here(paths: RunPaths, onlooker: preparing.Onlooker, preview: int = 0) -> None:
        from tsugi_cli.finetune.prepare import prepare_run, preview_run

        preview_run(paths, preview) if preview else prepare_run(paths)

    monkeypatch.setattr(preparing, "apart", here)


def pytest_unconfigure() -> None:
    if fork_server.cache_info().currsize:
        fork_server().stop()
