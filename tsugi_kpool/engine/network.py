"""Where a replica's group listens, and whether whoever reaches that network is trusted."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from tsugi_kpool.errors import ConfigError

TRUST = "say that they will not (topology.trust_network, trust_network)"


@dataclass(frozen=True)
class Network:
    """Where a replica's group listens, and whether that network is trusted.

    Raises:
        ConfigError: others could be there, and nobody has said that they are friends.
    """

    address: str = "127.0.0.1"
    """Address of this machine at which the other replicas reach it."""
    trusted: bool = False
    """The user trusts everybody who reaches that network not to break or hold up replicas' connections: gloo asks
    nobody for a key. Reading and changing is another matter: what replicas send is sealed (engine.sealed)."""

    def __post_init__(self) -> None:
        if not (self.trusted or self.loopback):
            raise ConfigError(
                [
                    f"replicas would listen to each other at {self.address}, where whoever reaches that network can "
                    f"break or hold up their connections; {TRUST}, or stay on 127.0.0.1"
                ]
            )

    @property
    def loopback(self) -> bool:
        """Whether only this machine reaches the address."""
        try:
            return ipaddress.ip_address(self.address).is_loopback
        except ValueError:
            return self.address == "localhost"


LOOPBACK = Network()
