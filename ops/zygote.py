"""Role entry of the zygote: loads what all workers share, once and single-threaded, then forks them on command.

A worker is forked twice: the process in between ends at once, and the supervisor, which adopts orphans, becomes the worker's
parent and reaps it. Memory stays shared until it is written: `gc.freeze` keeps the collector from writing to it.

Restart policy: always; workers outlive it. Stop deadline: none.
"""

import gc
import logging
import os
import signal
import socket
import time

import msgspec

from apiserver import worker
from apiserver.preload import Preloaded, preload
from config.model_folder import ModelFolderError
from ipc.handles import WorkerHandles
from ops import exit_codes, logs
from ops.plan import ZygotePlan
from ops.process_control import begin_role
from ops.zygote_messages import MAX_MESSAGE_BYTES, Forked

logger = logging.getLogger(__name__)

REPARENT_TIMEOUT_S = 2.0


def run(plan: ZygotePlan) -> None:
    """Serve fork commands until the supervisor closes its end. Raises SystemExit(3) when the model's text side is unusable."""
    os.environ["RAYON_NUM_THREADS"] = "1"  # a worker has one core; its tokenizer needs no pool of threads
    try:
        preloaded = preload(plan.model)
    except ModelFolderError as error:
        logger.error("tokenizer or chat template cannot be loaded", extra={"reason": str(error)})
        raise SystemExit(exit_codes.CANNOT_BOOT) from None
    command = socket.socket(fileno=plan.command_fd)
    command.setblocking(True)
    gc.collect()
    gc.freeze()
    command.send(msgspec.msgpack.encode(Forked(slot=-1, pid=0)))
    decoder = msgspec.msgpack.Decoder(WorkerHandles)
    while message := command.recv(MAX_MESSAGE_BYTES):
        _fork(plan, decoder.decode(message), preloaded, command)


def _fork(plan: ZygotePlan, handles: WorkerHandles, preloaded: Preloaded, command: socket.socket) -> None:
    between = os.fork()
    if between == 0:
        try:
            pid = os.fork()
            if pid == 0:
                _run_worker(plan, handles, preloaded, command)
            command.send(msgspec.msgpack.encode(Forked(slot=handles.slot, pid=pid)))
        finally:
            os._exit(0)
    os.waitpid(between, 0)


def _run_worker(plan: ZygotePlan, handles: WorkerHandles, preloaded: Preloaded, command: socket.socket) -> None:
    """In the worker; never returns."""
    code = exit_codes.FAILED
    try:
        command.close()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _await_adoption(plan.supervisor_pid)
        title = f"worker {handles.slot}"
        begin_role(title, plan.supervisor_pid)
        ops = plan.settings.ops
        logs.configure(title, level=ops.log_level, log_format=ops.log_format)
        worker.run(plan.settings, plan.model, handles, preloaded)
        code = exit_codes.OK
    except BaseException:
        logger.exception("worker crashed", extra={"slot": handles.slot})
    finally:
        logging.shutdown()  # lines of the last turn
        os._exit(code)


def _await_adoption(supervisor_pid: int) -> None:
    """Until the process in between is gone: what follows ties this one's life to its parent."""
    deadline_s = time.monotonic() + REPARENT_TIMEOUT_S
    while os.getppid() != supervisor_pid and time.monotonic() < deadline_s:
        time.sleep(0.001)
