"""Under which addresses others reach this machine."""

import ipaddress
import socket

import pytest

from ccdstream.live import addresses
from ccdstream.live.addresses import own_addresses


def test_each_address_is_this_machines_and_not_for_itself_alone() -> None:
    found = own_addresses()
    assert len(found) == len(set(found))
    for text in found:
        family = socket.AF_INET6 if ":" in text else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as listening:
            listening.bind((text, 0))  # an error for an address of another machine
        assert not ipaddress.ip_address(text).is_loopback


@pytest.mark.parametrize(
    ("told", "kept"),
    [
        (["192.168.1.20", "127.0.1.1", "192.168.1.20"], ["192.168.1.20"]),
        (["169.254.3.4", "fe80::1%eth0", "0.0.0.0", "fd00::2"], ["fd00::2"]),
        ([], []),
    ],
)
def test_what_others_cannot_open_is_left_out(
    monkeypatch: pytest.MonkeyPatch, told: list[str], kept: list[str]
) -> None:
    for way in ("_by_the_way_out", "_by_interface"):
        monkeypatch.setattr(addresses, way, list)
    monkeypatch.setattr(addresses, "_by_name", lambda: told)
    assert own_addresses() == kept


def test_a_machine_on_no_network_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", fail)
    monkeypatch.setattr(socket, "if_nameindex", list)
    monkeypatch.setattr(socket, "getaddrinfo", fail)
    assert own_addresses() == []
