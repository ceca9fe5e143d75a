"""A vLLM that this process starts and owns: `vllm serve --headless`, which runs an engine core and no API server."""

import ctypes
import logging
import os
import signal
import subprocess
from collections.abc import Sequence

from engine_core.vllm.link import EngineGone

logger = logging.getLogger(__name__)

STOP_S = 20.0  # vLLM frees its devices in this time or is killed; ops.supervisor gives this process more
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


class HeadlessServer:
    """Ends with this process: SIGTERM comes to it when this one dies, whatever way."""

    def __init__(self, python: str, model_folder: str, handshake_port: int, flags: Sequence[str]) -> None:
        """Raises OSError where there is no such interpreter."""
        command = [
            python, "-m", "vllm.entrypoints.cli.main", "serve", model_folder, "--headless",
            "--data-parallel-address", "127.0.0.1", "--data-parallel-rpc-port", str(handshake_port), *flags,
        ]  # fmt: skip
        logger.info("vLLM starts", extra={"command": " ".join(command)})
        libc = ctypes.CDLL(None)  # loaded before the fork
        self._process = subprocess.Popen(
            command,
            env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
            stdin=subprocess.DEVNULL,
            process_group=0,
            preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM),
        )

    def check(self) -> None:
        """Raises EngineGone when it has ended."""
        code = self._process.poll()
        if code is not None:
            raise EngineGone(f"vLLM ended with code {code}; its last lines stand above")

    def stop(self) -> None:
        """And wait until it is gone, children too."""
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            logger.warning("vLLM does not stop and is killed")
        self.kill()

    def kill(self) -> None:
        """At once, with its children: those of one that has ended too."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait()
