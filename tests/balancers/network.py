"""A network namespace at the end of a virtual cable, which can be pulled. Needs root and iproute2."""

import os
import subprocess
from pathlib import Path

from tests.integration.fleet import Fleet

HOST_ADDRESS, FAR_ADDRESS = "198.18.255.1", "198.18.255.2"  # for tests of networks: RFC 2544


class FarNetwork:
    """Made on entering, gone on leaving."""

    def __init__(self) -> None:
        self.name = f"tokenfleet-{os.getpid()}"
        self._near, self._far = f"tfn{os.getpid()}", f"tff{os.getpid()}"

    def __enter__(self) -> "FarNetwork":
        _ip("netns", "add", self.name)
        try:
            _ip("link", "add", self._near, "type", "veth", "peer", "name", self._far, "netns", self.name)
            _ip("address", "add", f"{HOST_ADDRESS}/30", "dev", self._near)
            self._ip_there("address", "add", f"{FAR_ADDRESS}/30", "dev", self._far)
            self._ip_there("link", "set", "lo", "up")
            _ip("link", "set", self._near, "up")
            self.connect()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        _ip("netns", "delete", self.name)  # and with it both ends of the cable

    def cut(self) -> None:
        """Packets of either side are lost; nobody is told."""
        self._ip_there("link", "set", self._far, "down")

    def connect(self) -> None:
        self._ip_there("link", "set", self._far, "up")

    def _ip_there(self, *arguments: str) -> None:
        _ip("-netns", self.name, *arguments)


class FarFleet(Fleet):
    """A fleet in that namespace, reached by its address only."""

    host = FAR_ADDRESS

    def __init__(self, network: FarNetwork, log_path: Path, *flags: str) -> None:
        super().__init__(log_path, *flags, "--host", "0.0.0.0", "--ops-host", "0.0.0.0")
        self._command = ["ip", "netns", "exec", network.name, *self._command]  # becomes the fleet, keeps its pid


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=10, check=False)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"
