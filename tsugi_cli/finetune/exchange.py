"""A replica's end of the run's exchange, from the run's key file and its own place."""

from __future__ import annotations

from tsugi_cli.config.spec import RunSpec
from tsugi_cli.record.run_dir import RunPaths
from tsugi_kpool.core.hub.seats import seat_key
from tsugi_kpool.exchange.certificates import member_context, member_credentials
from tsugi_kpool.exchange.client import ExchangeClient, Place
from tsugi_kpool.sideband import keys
from tsugi_kpool.sideband.addresses import split


def exchange_client(spec: RunSpec, paths: RunPaths, replica: int) -> ExchangeClient | None:
    """Return a replica's end of the exchange, not connected yet; None where replicas send to each other."""
    own = keys.load(paths.keys)
    if not own.exchange:
        return None
    host, port = split(own.address or "")
    seat = paths.seat() or seat_key(own.hub_secret, replica)
    context = member_context(member_credentials(own.member_secret), own.exchange)
    return ExchangeClient(Place(host, port + 1, replica, seat, paths.ticket()), context, spec.kpool.round_timeout_s)
