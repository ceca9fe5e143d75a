"""Listening sockets, bound once by the supervisor. A worker's death closes none, so no connection is refused meanwhile."""

import socket
from pathlib import Path

from config.settings import ServerSettings

UNSENT_BYTES = 16 * 1024  # the kernel takes no more of a connection that has so much still to send; window excepted
DEAD_SCRAPER_S = 60.0  # an answer of the ops port that nobody takes is kept for so long
BACKLOG = 4096  # the kernel takes the smaller of this and net.core.somaxconn


class CannotListen(Exception):
    """One line for the operator."""


def serving_sockets(settings: ServerSettings) -> list[socket.socket]:
    """One per address of the host; all share a port. Raises CannotListen."""
    if settings.uds is not None:
        return [_unix_socket(Path(settings.uds))]
    sockets: list[socket.socket] = []
    for family, address in _addresses(settings.host, settings.port, "--host"):
        port = sockets[0].getsockname()[1] if sockets and not settings.port else settings.port
        sockets.append(_tcp_socket(family, address, port, flag="--port"))
        _give_up_on_the_dead(sockets[-1], settings.dead_client_timeout_s)
    return sockets


def ops_socket(host: str, port: int) -> socket.socket:
    """Raises CannotListen."""
    family, address = _addresses(host, port, "--ops-host")[0]
    listener = _tcp_socket(family, address, port, flag="--ops-port")
    _give_up_on_the_dead(listener, DEAD_SCRAPER_S)
    return listener


def _addresses(host: str, port: int, flag: str) -> list[tuple[socket.AddressFamily, str]]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise CannotListen(f"{flag} {host} is no address of this host: {error.strerror}") from None
    return list(dict.fromkeys((family, str(address[0])) for family, _, _, _, address in found))


def _tcp_socket(family: socket.AddressFamily, address: str, port: int, *, flag: str) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)  # accepted sockets inherit it
    try:
        listener.bind((address, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise CannotListen(
            f"cannot listen on {address}:{port}: {_reason(error)}; choose another with {flag} (0 picks a free one)"
        ) from None
    listener.setblocking(False)
    return listener


def _give_up_on_the_dead(listener: socket.socket, timeout_s: float) -> None:
    """Accepted connections inherit it: one whose other end is gone without a word is probed, and ended by then
    (RFC 1122 4.2.3.6; TCP_USER_TIMEOUT, RFC 5482). Else what is unsent keeps it, and its stream, a quarter of an hour."""
    probe_s = max(1, int(timeout_s / 4))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, probe_s)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, probe_s)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(timeout_s * 1000))


def _unix_socket(path: Path) -> socket.socket:
    """Replaces the socket a killed fleet left behind, never one that somebody serves on, never another kind of file."""
    if path.is_socket():
        _refuse_if_served(path)
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise CannotListen(f"cannot listen on --uds {path}: {_reason(error)}") from None
    listener.setblocking(False)
    return listener


def _refuse_if_served(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return
        except OSError as error:
            raise CannotListen(f"cannot listen on --uds {path}: {_reason(error)}") from None
    raise CannotListen(f"cannot listen on --uds {path}: another server is serving there")


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
