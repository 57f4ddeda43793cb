"""The table of connections by client, without a socket."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from edge.addresses import AddressTable, Connection, client_of, is_trusted


def held(host: str, *idle_ms: int | None, first: int = 0) -> list[Connection]:
    return [Connection(first + index, client_of(host), idle) for index, idle in enumerate(idle_ms)]


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("2001:db8::1", "2001:db8::ffff:2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2", True),
    ],
)
def test_a_client_is_an_address_or_a_network_of_64_bits(one: str, other: str, is_same: bool) -> None:
    assert (client_of(one) == client_of(other)) is is_same


def test_a_mapped_address_of_a_proxy_is_trusted() -> None:
    networks = [ip_network("192.0.2.0/24"), ip_network("2001:db8::/32")]
    assert is_trusted("::ffff:192.0.2.7", networks) and is_trusted("2001:db8::7", networks)
    assert not is_trusted("198.51.100.7", networks)


def test_the_longest_idle_connections_above_the_share_give_way() -> None:
    table = AddressTable(address_max=2, total_max=100, total_after=50)
    table.fill([*held("192.0.2.1", 5, 900, None, 70), *held("192.0.2.2", 10_000, first=10)])
    assert [each.number for each in table.to_displace()] == [1, 3]


def test_connections_with_a_request_stay_even_above_the_share() -> None:
    table = AddressTable(address_max=1, total_max=1, total_after=1)
    table.fill(held("192.0.2.1", None, None, None))
    assert table.to_displace() == []


def test_near_the_total_bound_the_client_with_the_most_idle_connections_gives_way() -> None:
    table = AddressTable(address_max=100, total_max=5, total_after=3)
    table.fill([*held("192.0.2.1", 5, 6, 7, 8), *held("192.0.2.2", 900, 900, first=10)])
    assert [each.number for each in table.to_displace()] == [3, 2, 1]
    assert table.spare == [], "the client keeps its last one"
    table = AddressTable(address_max=100, total_max=5, total_after=4)
    table.fill([*held("192.0.2.1", 5, 6, 7, 8), *held("192.0.2.2", 900, 900, first=10)])
    assert [each.number for each in table.to_displace()] == [3, 2]
    assert [each.number for each in table.spare] == [1]


def test_single_connections_of_many_clients_stay() -> None:
    table = AddressTable(address_max=10, total_max=3, total_after=2)
    table.fill([each for part in range(9) for each in held(f"192.0.2.{part}", 500, first=part)])
    assert table.to_displace() == []


def test_proxies_count_for_the_total_only() -> None:
    table = AddressTable(address_max=1, total_max=10, total_after=5)
    table.fill([Connection(number, None, 500) for number in range(20)])
    assert table.to_displace() == []
