"""Names and sockets: looking a host up, and reaching the first of its addresses that answers.

We do both ourselves, and not through aiosmtplib, so that the phases resolve and connect are true.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias

SocketAddress: TypeAlias = tuple[socket.AddressFamily, Any]
Resolve: TypeAlias = Callable[[str, int], Awaitable[list[SocketAddress]]]  # raises socket.gaierror
OwnName: TypeAlias = Callable[[], Awaitable[str | None]]  # this host's FQDN, None where it has none


async def resolve(host: str, port: int) -> list[SocketAddress]:
    """Look a name up without blocking the loop.

    Raises:
        socket.gaierror: the name does not exist, or the resolver fails.
    """
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [(family, address) for family, _, _, _, address in found]


async def connect_to_any(addresses: Sequence[SocketAddress], *, within: float) -> tuple[socket.socket, SocketAddress]:
    """Connect to the first address that answers, in order; whoever calls closes the socket.

    All share the budget of `within` seconds, so that a dead one leaves time for the next.

    Raises:
        OSError: none answered; TimeoutError, or what the last one said.
    """
    loop = asyncio.get_running_loop()
    ends = loop.time() + within
    error: OSError = TimeoutError()
    for at, (family, address) in enumerate(addresses):
        share = max(0.0, ends - loop.time()) / (len(addresses) - at)
        try:
            sock = socket.socket(family, socket.SOCK_STREAM)
        except OSError as now:  # a family that this machine does not have
            error = now
            continue
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.timeout(share):
                await loop.sock_connect(sock, address)
        except OSError as now:
            sock.close()
            error = now
        except BaseException:
            sock.close()
            raise
        else:
            return sock, (family, address)
    raise error
