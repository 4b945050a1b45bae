"""Names and sockets: look a host up, and connect to the first of its addresses that answers.

We do both ourselves, and not through aiosmtplib, so that the phases resolve and connect are true.
"""

from __future__ import annotations

import asyncio
import errno
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias

import aiohappyeyeballs

SocketAddress: TypeAlias = tuple[socket.AddressFamily, Any]
Resolve: TypeAlias = Callable[[str, int], Awaitable[list[SocketAddress]]]  # raises socket.gaierror
OwnName: TypeAlias = Callable[[], Awaitable[str | None]]  # this host's FQDN, None where it has none

STAGGER = 0.25  # seconds until the next address is tried beside one that does not answer (RFC 8305 §5)
_ERRNO = re.compile(r"\[Errno (\d+)\]")
# A relay that refuses is there; the other errors are about the way to it, or about this machine.
_MOST_TELLING = (errno.ECONNREFUSED, errno.ECONNRESET, errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH)


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
        OSError: none answered; TimeoutError, or the most telling of the errors.
    """
    made: dict[socket.socket, SocketAddress] = {}

    def new_socket(info: aiohappyeyeballs.AddrInfoType) -> socket.socket:
        sock = socket.socket(info[0], socket.SOCK_STREAM)
        made[sock] = (socket.AddressFamily(info[0]), info[4])
        return sock

    infos: list[aiohappyeyeballs.AddrInfoType] = [
        (family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", address) for family, address in addresses
    ]
    try:
        async with asyncio.timeout(within):
            sock = await aiohappyeyeballs.start_connection(
                infos, happy_eyeballs_delay=STAGGER, socket_factory=new_socket
            )
    except OSError as error:
        raise _most_telling(error) from error
    except RuntimeError as error:  # from uvloop, where a socket was closed under it
        raise OSError(str(error)) from error
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock, made[sock]


def _most_telling(error: OSError) -> OSError:
    """Return one error of several addresses: aiohappyeyeballs joins their texts and drops their numbers."""
    if error.errno is not None or isinstance(error, TimeoutError):
        return error
    numbers = [int(number) for number in _ERRNO.findall(str(error))]
    found = next((number for number in _MOST_TELLING if number in numbers), None)
    return error if found is None else OSError(found, str(error))
