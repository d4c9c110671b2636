"""Under which addresses others reach this machine."""

import ipaddress
import socket
import struct
import sys
from contextlib import suppress

_UNUSED = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}
"""Of documentation, so nobody's: connecting a UDP socket sends nothing, and tells the way there."""
_SIOCGIFADDR = 0x8915
"""Linux: the IPv4 address of an interface."""


def own_addresses() -> list[str]:
    """This machine's addresses without those that only itself can reach, the likeliest first.

    By the way out, by the interfaces (Linux), and by the machine's name; so some may be missing,
    and all where it is on no network.
    """
    found = [*_by_the_way_out(), *_by_interface(), *_by_name()]
    return list(dict.fromkeys(address for address in found if _is_for_others(address)))


def _by_the_way_out() -> list[str]:
    addresses = []
    for family, unused in _UNUSED.items():
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as way:
            way.connect((unused, 9))
            addresses.append(str(way.getsockname()[0]))
    return addresses


def _by_interface() -> list[str]:
    if not sys.platform.startswith("linux"):
        return []
    import fcntl

    addresses = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            with suppress(OSError):  # it has none
                answer = fcntl.ioctl(asking.fileno(), _SIOCGIFADDR, request)
                addresses.append(socket.inet_ntoa(answer[20:24]))
    return addresses


def _by_name() -> list[str]:
    try:
        found = socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_DGRAM)
    except OSError:
        return []
    return [str(address[0]) for *_, address in found]


def _is_for_others(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:  # with a zone: link-local
        return False
    return not (address.is_loopback or address.is_link_local or address.is_unspecified)
