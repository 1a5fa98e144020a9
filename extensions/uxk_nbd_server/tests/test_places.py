"""Who gets a place, and whose."""

from __future__ import annotations

import socket

import pytest

from uxk_nbd_server.places import Guest, Places, Refused, peer_of


class Door:
    """Notes who had to leave."""

    def __init__(self, places: int, per_address: int = 1 << 20) -> None:
        self.places = Places(places, per_address)
        self.left: list[str] = []

    def come(self, name: str, peer: str = "") -> Guest:
        guest = self.places.admit(peer, lambda reason: self.left.append(f"{name}: {reason}"))
        assert isinstance(guest, Guest), guest
        return guest

    def refusal(self, peer: str = "") -> str:
        refused = self.places.admit(peer, self.left.append)
        assert isinstance(refused, Refused)
        return refused.reason


def test_the_oldest_of_those_who_shake_hands_makes_room() -> None:
    door = Door(6)
    for name in "abcdef":
        door.come(name)
    assert not door.left, "many at once are nothing bad as long as there are places"
    door.places.settle(next(iter(door.places.all())))
    for name in "ghi":
        door.come(name)
    assert door.left == [f"{name}: somebody else needed its place" for name in "bcd"]
    assert door.places.taken == 6


def test_whoever_has_an_export_stays() -> None:
    door = Door(4)
    guests = []
    for name in "abcd":
        guests.append(door.come(name))
        door.places.settle(guests[-1])
    assert door.refusal() == "4 clients are connected already"
    door.places.leave(guests[1])
    door.come("e")
    door.come("f")
    assert door.left == ["e: somebody else needed its place"]
    assert door.places.taken == 4


def test_leaving_twice_is_no_mistake() -> None:
    door = Door(2)
    first = door.come("a", "x")
    door.come("b", "x")
    door.places.leave(first)
    assert door.places.taken == 1
    door.places.settle(first)
    assert door.places.taken == 1


def test_a_flood_from_one_address_makes_room_for_itself() -> None:
    door = Door(8)
    door.come("honest", "192.0.2.1")
    for number in range(50):
        door.come(str(number), "198.51.100.7")
    assert len(door.left) == 43
    assert not [line for line in door.left if line.startswith("honest")]


def test_one_address_gets_its_share() -> None:
    door = Door(8, 3)
    for name in "abc":
        door.places.settle(door.come(name, "192.0.2.1"))
    assert door.refusal("192.0.2.1") == "3 clients from 192.0.2.1 are connected already"
    door.come("d", "192.0.2.2")
    assert door.places.taken == 4


def test_at_its_share_an_address_makes_room_of_its_own() -> None:
    door = Door(8, 2)
    door.come("a", "192.0.2.2")
    for name in "bcd":
        door.come(name, "192.0.2.1")
    assert door.left == ["b: somebody else needed its place"]


@pytest.mark.parametrize(
    ("family", "address", "peer"),
    [
        (socket.AF_UNIX, None, ""),
        (socket.AF_INET, ("192.0.2.9", 5), "192.0.2.9"),
        (socket.AF_INET6, ("::ffff:192.0.2.9", 5, 0, 0), "192.0.2.9"),
        (socket.AF_INET6, ("2001:db8:1:2:3:4:5:6", 5, 0, 0), "2001:db8:1:2::/64"),
        (socket.AF_INET6, ("fe80::1%eth0", 5, 0, 2), "fe80::/64"),
        (socket.AF_INET, None, "nowhere"),
    ],
)
def test_where_a_client_comes_from(family: int, address: tuple[object, ...] | None, peer: str) -> None:
    class Socket:
        def getpeername(self) -> tuple[object, ...]:
            if address is None:
                raise OSError
            return address

    Socket.family = family  # type: ignore[attr-defined]
    assert peer_of(Socket()) == peer  # type: ignore[arg-type]
