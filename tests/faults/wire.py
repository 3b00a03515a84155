"""A wire between two network namespaces that can be cut, cut one way, delayed, made lossy or slow.

It is the one that `tsugi bench` lays; nothing outside the namespaces is reached.
"""

from __future__ import annotations

from collections import Counter

from tsugi_cli.bench.links.namespaces import Namespaces, NoNamespace
from tsugi_cli.bench.links.wire import Weather
from tsugi_cli.bench.links.wire import Wire as Carried

__all__ = ["HERE", "THERE", "NoNamespace", "Weather", "Wire"]

DEVICE = "wire"
HERE, THERE = "10.213.7.1", "10.213.7.2"
BETWEEN = "between"


class Wire:
    """Two namespaces and the wire between them. `lay`, `tear`; `weather` may be changed at any time.

    In `Weather.cut` 0 is what comes from here, 1 is what comes from there.
    """

    here, there = "here", "there"

    def __init__(self) -> None:
        self._namespaces = Namespaces()
        self._carried: Carried | None = None

    def lay(self) -> None:
        """Make namespaces, cables and what carries between them.

        Raises:
            NoNamespace: rights are missing.
        """
        made = self._namespaces.open()
        for name in (BETWEEN, self.here, self.there):
            made.add(name)
        for name, address in ((self.here, HERE), (self.there, THERE)):
            cable = ("link", "add", DEVICE, "netns", made.process(name), "type", "veth", "peer", "name", name)
            made.run(BETWEEN, "ip", *cable)
            made.run(BETWEEN, "ip", "link", "set", name, "addrgenmode", "none", "up")
            made.run(name, "ip", "addr", "add", f"{address}/24", "dev", DEVICE)
            made.run(name, "ip", "link", "set", DEVICE, "gso_max_segs", "1", "up")
        self._carried = Carried(made, BETWEEN, [(self.here, self.there)], Weather())

    def tear(self) -> None:
        """Take all of it away."""
        if self._carried is not None:
            self._carried.stop()
        self._namespaces.close()

    @property
    def weather(self) -> Weather:
        return self._laid.weather

    @weather.setter
    def weather(self, weather: Weather) -> None:
        self._laid.set(weather)

    @property
    def counts(self) -> Counter[str]:
        """Packets: `carried`, `cut`, `lost`."""
        return sum((Counter(lane) for lane in self._laid.counted().lanes), Counter())

    def heal(self) -> None:
        self.weather = Weather()

    def inside(self, name: str) -> tuple[str, ...]:
        """What a command is run in a namespace by."""
        return self._namespaces.inside(name)

    @property
    def _laid(self) -> Carried:
        assert self._carried is not None, "no wire has been laid"
        return self._carried
