"""Who sends wrong tokens has to wait, so that nobody tries them by the thousand."""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict, deque
from collections.abc import Callable

#: So many wrong tokens an address may send in so many seconds; then it is not listened to.
FREE = 5
SECONDS = 60.0
#: So many addresses are remembered, the latest.
ADDRESSES = 10_000


class Brake:
    """Counts wrong tokens by address.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._wrong: OrderedDict[str, deque[float]] = OrderedDict()

    def wait(self, address: str) -> float:
        """Return for how many seconds an address is not listened to; 0 if it is."""
        times = self._wrong.get(_network(address), ())
        if len(times) < FREE:
            return 0.0
        return max(0.0, times[0] + SECONDS - self._clock())

    def wrong(self, address: str) -> None:
        """Take note of a wrong token."""
        network = _network(address)
        self._wrong.setdefault(network, deque(maxlen=FREE)).append(self._clock())
        self._wrong.move_to_end(network)
        if len(self._wrong) > ADDRESSES:
            self._wrong.popitem(last=False)


def _network(address: str) -> str:
    """Return what one sender can hardly change: of IPv6 the first half."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped  # as a socket for both names senders of IPv4: they share the first half
    if ip.version == 4:
        return str(ip)
    return str(ipaddress.ip_network((int(ip) >> 64 << 64, 64)))
