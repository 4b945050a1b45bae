"""Names and sockets: look a host up, and connect to the first of its addresses that answers.

We do both ourselves, and not through aiosmtplib, so that the phases resolve and connect are true.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias, cast

import aiohappyeyeballs

SocketAddress: TypeAlias = tuple[socket.AddressFamily, Any]
Resolve: TypeAlias = Callable[[str, int], Awaitable[list[SocketAddress]]]  # raises socket.gaierror
OwnName: TypeAlias = Callable[[], Awaitable[str | None]]  # this host's FQDN, None where it has none

STAGGER = 0.25  # seconds until the next address is tried beside one that does not answer (RFC 8305 §5)
_PRIVATE = re.compile(r"(\A|\.)(localhost|localdomain|local|lan|home|internal|intranet|corp)\.?\Z")


async def resolve(host: str, port: int) -> list[SocketAddress]:
    """Look a name up without blocking the loop.

    Raises:
        socket.gaierror: the name does not exist, or the resolver fails.
    """
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [(family, address) for family, _, _, _, address in found]


async def connect_to_any(addresses: Sequence[SocketAddress], *, within: float) -> tuple[socket.socket, SocketAddress]:
    """Connect to the first address that answers, by Happy Eyeballs (RFC 8305); the caller closes the socket.

    Families alternate, and an address that is silent for `STAGGER` seconds gets company. All share `within` seconds.

    Raises:
        OSError: none answered; the error of the last in order, TimeoutError where that was silent.
    """
    racing = _Racing()
    infos: list[aiohappyeyeballs.AddrInfoType] = [
        (family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", address) for family, address in addresses
    ]
    try:
        async with asyncio.timeout(within):
            sock = await aiohappyeyeballs.start_connection(
                infos,
                happy_eyeballs_delay=STAGGER,
                loop=cast("asyncio.AbstractEventLoop", racing),
                socket_factory=racing.new_socket,
            )
    except (OSError, RuntimeError) as error:  # RuntimeError: from uvloop, where a socket is closed under it
        raise racing.errors.get(addresses[-1]) or TimeoutError() from error
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock, racing.sockets[sock]


class _Racing:
    """What aiohappyeyeballs needs of an event loop; keeps what became of each address, which it joins into one text."""

    def __init__(self) -> None:
        self.sockets: dict[socket.socket, SocketAddress] = {}
        self.errors: dict[SocketAddress, OSError] = {}

    def new_socket(self, info: aiohappyeyeballs.AddrInfoType) -> socket.socket:
        address = socket.AddressFamily(info[0]), info[4]
        try:
            sock = socket.socket(info[0], socket.SOCK_STREAM)
        except OSError as error:  # a family that this machine does not have
            self.errors[address] = error
            raise
        self.sockets[sock] = address
        return sock

    async def sock_connect(self, sock: socket.socket, address: Any) -> None:
        try:
            await asyncio.get_running_loop().sock_connect(sock, address)
        except OSError as error:
            self.errors[self.sockets[sock]] = error
            raise


def is_odd_name(name: str) -> bool:
    """Whether a name in EHLO means nothing outside this machine's network: an address, no domain, a private one."""
    return name.startswith("[") or "." not in name.strip(".") or bool(_PRIVATE.search(name)) if name else False
