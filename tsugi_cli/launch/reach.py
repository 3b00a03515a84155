"""`tsugi doctor --hub`: whether this machine reaches a run's hub and exchange, and would get a place there.

The hub is asked for its status, as `tsugi sideband status` does, and gives no place away. `judge` is pure.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TextIO

from tsugi_kpool.about import about
from tsugi_kpool.core.likeness import MAY, MUST, About, unlike
from tsugi_kpool.core.messages import FleetStatus
from tsugi_kpool.errors import ExitCode, LaunchError, SidebandError
from tsugi_kpool.exchange.certificates import member_credentials, trying_context
from tsugi_kpool.sideband import token as tokens
from tsugi_kpool.sideband.addresses import TCP, is_loopback, joined, split
from tsugi_kpool.sideband.incoming import one_line
from tsugi_kpool.sideband.keys import RunKeys
from tsugi_kpool.sideband.observer import ask_status, takes

from .doctor import Finding, Verdict
from .invitation import Invitation
from .keys import TOKEN_FILE
from .refusals import REFUSALS

ASK_S = 3.5
"""Timeout of the hub's answer at each address."""
CONNECT_S = 1.0
"""Timeout of the plain connection that finds out why there was none; with ASK_S less than 5 s."""
TLS_S = 2.0
"""Timeout of connecting to the exchange, and again of its handshake."""
LISTENS = "something listens there, but does not answer"
ADVICE = {
    ExitCode.TOO_EARLY: "tsugi join --wait waits for it",
    ExitCode.OVER: "start a new run; on the hub's machine tsugi finetune resume=last goes on from its checkpoint",
    ExitCode.FULL: "start the run with more topology.replicas, or wait until a machine has gone",
    ExitCode.LAUNCH: "start the run with more topology.replicas than topology.here",
}
"""What to do when the hub has no place, by the exit code that `tsugi join` would have."""


@dataclass(frozen=True)
class Reached:
    """What was found out about a hub."""

    findings: tuple[Finding, ...]
    exit_code: ExitCode
    """OK: nothing keeps this machine from joining now."""


def try_hub(text: str, insecure: bool, ask: TextIO) -> Reached:
    """Try to reach the hub of an address or a token, and its exchange.

    Args:
        text: tcp://host:port, host:port, or a token; - reads one of them from `ask`. To an address belongs the token
            in the file that TSUGI_TOKEN_FILE names; without one only the port is tried.
        insecure: The hub asks for no keys.
        ask: Standard input.

    Raises:
        ConfigError: address or token are none, or the token is an observer's.
    """
    text = (ask.readline() if text == "-" else text).strip()
    if not tokens.is_token(text):
        text = text if text.startswith(TCP) else TCP + text
        tokens.check_address(text)
        if not insecure and TOKEN_FILE not in os.environ:
            return _port_only(text)
    invitation = Invitation.read(text, None, insecure, ask)
    return _answered(invitation.keys, invitation.addresses)


def _port_only(address: str) -> Reached:
    found, advice = why_silent(address)
    if found != LISTENS:
        return Reached((_hub(address, found, advice),), ExitCode.UNREACHABLE)
    advice = "whether it is the hub, only a token tells: tsugi doctor --hub tsugi2-... (or -, and paste it)"
    return Reached((_hub(address, "something listens there", advice, "note"),), ExitCode.OK)


def _answered(keys: RunKeys, addresses: Sequence[str]) -> Reached:
    """Ask at one address after the other, until the hub answers."""
    missed: list[Finding] = []
    for address in addresses:
        here = replace(keys, address=address)
        try:
            status = ask_status(here, ASK_S)
        except LaunchError as error:
            advice = "install the same version of tsugi on both machines"
            return Reached((*missed, _hub(address, str(error), advice)), error.exit_code)
        except SidebandError:
            missed.append(_hub(address, *_why_no_word(here)))
            continue
        unreached = exchange_silent(here) if status.exchange else ""
        found = judge(status, about(), address, unreached)
        enough = [replace(each, verdict="note", advice="nothing: the next address does") for each in missed]
        return Reached((*enough, *found.findings), found.exit_code)
    return Reached(tuple(missed), ExitCode.UNREACHABLE)


def judge(status: FleetStatus, ours: About, address: str, unreached: str) -> Reached:
    """Decide what a hub's answer means for a machine that wants to join. Pure.

    Args:
        status: The answer.
        ours: What this machine says of itself.
        address: Where the hub has answered.
        unreached: Why the run's exchange was not reached; empty: it was, or there is none.
    """
    run, stage = one_line(status.run), one_line(status.stage)
    there = _hub(address, f"run {run} answers: {stage}, {status.joined} of {status.expected} replicas", "", "ok")
    versions, plane, place = _versions(status.about, ours), _data_plane(status, address, unreached), _place(status)
    codes = (
        ExitCode.LAUNCH if versions.verdict == "problem" else ExitCode.OK,
        ExitCode.UNREACHABLE if unreached else ExitCode.OK,
        code_of(status.no_place),
    )
    return Reached((there, versions, plane, place), next((code for code in codes if code), ExitCode.OK))


def code_of(no_place: str) -> ExitCode:
    """Return the exit code that `tsugi join` would have for this reason; OK where there is none."""
    known = (code for words, code in REFUSALS.items() if no_place.startswith(words))
    return next(known, ExitCode.LAUNCH) if no_place else ExitCode.OK


def _versions(theirs: About, ours: About) -> Finding:
    if not theirs:
        return Finding(
            "versions", "the hub does not name its own", "note", "compare tsugi --version on both machines"
        )
    if (found := unlike(ours, theirs, MUST)) is not None:
        return Finding("versions", _of_ours(found), "problem", "install the same version of tsugi on both machines")
    if (found := unlike(ours, theirs, MAY)) is not None:
        advice = "nothing, unless data or adapters turn out to differ: then install the hub's version here"
        return Finding("versions", _of_ours(found), "note", advice)
    return Finding("versions", f"tsugi {ours.get('tsugi', '')}, as the hub")


def _of_ours(found: str) -> str:
    return one_line("this machine" + found.removeprefix("it"))


def _data_plane(status: FleetStatus, address: str, unreached: str) -> Finding:
    if not status.exchange:
        advice = "other machines must reach this one, too: at any port of sysctl net.ipv4.ip_local_port_range"
        return Finding("data plane", "replicas send to each other", "note", advice)
    host, port = split(address)
    where = joined(host, port + 1).removeprefix(TCP)
    if not unreached:
        return Finding(f"exchange {where}", "is reached")
    advice = f"open TCP {port + 1} of the hub's machine, too; where ports are forwarded, this one is the hub's plus 1"
    return Finding(f"exchange {where}", unreached, "problem", advice)


def _place(status: FleetStatus) -> Finding:
    if not status.no_place:
        return Finding("place", "one is free")
    return Finding("place", one_line(status.no_place), "problem", ADVICE[code_of(status.no_place)])


def _hub(address: str, found: str, advice: str, verdict: Verdict = "problem") -> Finding:
    return Finding(f"hub {address.removeprefix(TCP)}", one_line(found), verdict, advice)


def _why_no_word(keys: RunKeys) -> tuple[str, str]:
    """Return why no hub answers to these keys, and what to do."""
    found, advice = why_silent(keys.address or "")
    if found != LISTENS or not keys.curve or not takes(keys):
        return found, advice
    advice = "it hangs, or the path drops large packets: try ip link set DEVICE mtu 1280 here"
    return "it takes this token, and then nothing comes", advice


def why_silent(address: str) -> tuple[str, str]:
    """Return why no hub answers at an address, from an attempt to connect plainly, and what to do."""
    host, port = split(address)
    try:
        socket.create_connection((host, port), CONNECT_S).close()
    except socket.gaierror:
        return (
            "this name is not known here",
            "sideband.reached_at=[NUMBER:PORT] of the run puts a number in its token",
        )
    except ConnectionRefusedError:
        found = "nobody listens there"
        if is_loopback(host):
            return found, "this address is for the hub's machine only: start the run with sideband.bind=0.0.0.0"
        return found, "start the run, or serve it again there: tsugi hub --run DIR; is the port the one of its plan?"
    except TimeoutError:
        ports = f"TCP {port} and {port + 1}"
        return "no answer at all", f"open {ports} of the hub's machine; behind a router name sideband.reached_at"
    except OSError as error:
        found = f"there is no way to it ({(error.strerror or str(error)).lower()})"
        return found, "use an address of a network that both machines are in; sideband.reached_at adds one"
    return LISTENS, "every run has its own token: tsugi sideband token there shows it; compare tsugi --version, too"


def exchange_silent(keys: RunKeys) -> str:
    """Return why the exchange is not reached, one port above the hub of these keys; empty: it is.

    The handshake is a member's, so it counts as nobody's attack; no place is shown.
    """
    host, port = split(keys.address or "")
    try:
        with socket.create_connection((host, port + 1), TLS_S) as plain:
            trying_context(member_credentials(keys.member_secret)).wrap_socket(plain).close()
    except ConnectionRefusedError:
        return "nobody listens there"
    except TimeoutError:
        return "no answer at all"
    except OSError as error:  # ssl's errors, too
        return one_line(f"something else than an exchange answers ({error.strerror or error})")
    return ""
