import socket
from pathlib import Path

import pytest

from config.settings import ServerSettings
from ops.listeners import DEAD_SCRAPER_S, UNSENT_BYTES, CannotListen, ops_socket, serving_sockets


def test_port_zero_takes_a_free_one_that_accepts() -> None:
    [listener] = serving_sockets(ServerSettings(port=0))

    with listener, socket.create_connection(listener.getsockname(), timeout=5) as client:
        assert client.getpeername() == listener.getsockname()


def test_an_accepted_connection_keeps_little_unsent() -> None:
    [listener] = serving_sockets(ServerSettings(port=0))

    with listener, socket.create_connection(listener.getsockname(), timeout=5):
        listener.setblocking(True)
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == UNSENT_BYTES


def test_a_scraper_that_is_gone_or_takes_nothing_is_given_up() -> None:
    with ops_socket("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname(), timeout=5):
        listener.setblocking(True)
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == DEAD_SCRAPER_S * 1000
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1


def test_a_busy_port_is_named_with_the_flag_that_changes_it() -> None:
    with ops_socket("127.0.0.1", 0) as busy:
        port = busy.getsockname()[1]

        with pytest.raises(CannotListen, match=rf"127\.0\.0\.1:{port}: address already in use; .* --ops-port"):
            ops_socket("127.0.0.1", port)


def test_an_unknown_host_is_named() -> None:
    with pytest.raises(CannotListen, match=r"--host 256\.0\.0\.1 is no address"):
        serving_sockets(ServerSettings(host="256.0.0.1"))


def test_the_unix_socket_of_a_killed_fleet_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "serve"
    serving_sockets(ServerSettings(uds=str(path)))[0].close()  # as SIGKILL leaves it: the file stays

    [listener] = serving_sockets(ServerSettings(uds=str(path)))

    with listener, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_a_unix_socket_in_use_is_refused_and_goes_on_serving(tmp_path: Path) -> None:
    path = tmp_path / "serve"
    [listener] = serving_sockets(ServerSettings(uds=str(path)))
    with listener:
        with pytest.raises(CannotListen, match="another server"):
            serving_sockets(ServerSettings(uds=str(path)))

        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


def test_a_file_in_the_place_of_the_unix_socket_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")

    with pytest.raises(CannotListen, match="address already in use"):
        serving_sockets(ServerSettings(uds=str(path)))

    assert path.read_text() == "data"


def test_an_accepted_connection_gives_up_on_a_client_that_is_gone() -> None:
    [listener] = serving_sockets(ServerSettings(port=0, dead_client_timeout_s=8))

    with listener, socket.create_connection(listener.getsockname(), timeout=5):
        listener.setblocking(True)
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 2
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 8000
