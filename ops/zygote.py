"""Role entry of the zygote: loads what all workers share, once and single-threaded, then forks them on command.

A worker is forked twice: the process in between ends at once, and the supervisor, which adopts orphans, becomes the worker's
parent and reaps it. A worker begins when the fleet page has its pid: one that the supervisor never heard of, because the
process in between was killed before it could tell, would serve unwatched in a slot that another one gets. Memory stays
shared until it is written: `gc.freeze` keeps the collector from writing to it.

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
from ipc.fleet_page import FleetPage
from ipc.handles import WorkerHandles
from ipc.segment import Segment
from ops import exit_codes, logs
from ops.plan import ZygotePlan
from ops.process_control import begin_role
from ops.zygote_messages import LOADED, MAX_MESSAGE_BYTES, NOT_FORKED, Forked

logger = logging.getLogger(__name__)

REPARENT_TIMEOUT_S = 2.0
RECOGNITION_TIMEOUT_S = 5.0


class Unknown(Exception):
    """The supervisor has another process in this worker's place, or none."""


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
    command.send(msgspec.msgpack.encode(Forked(slot=-1, generation=0, pid=LOADED)))
    decoder = msgspec.msgpack.Decoder(WorkerHandles)
    while message := command.recv(MAX_MESSAGE_BYTES):
        _fork(plan, decoder.decode(message), preloaded, command)


def _fork(plan: ZygotePlan, handles: WorkerHandles, preloaded: Preloaded, command: socket.socket) -> None:
    try:
        between = os.fork()
    except OSError:  # no memory, or no pid: it may pass
        _answer(command, handles, NOT_FORKED)
        return
    if between == 0:
        code = exit_codes.FAILED
        try:
            pid = os.fork()
            if pid == 0:
                _run_worker(plan, handles, preloaded, command)
            _answer(command, handles, pid)
            code = exit_codes.OK
        finally:
            os._exit(code)
    _, status = os.waitpid(between, 0)
    if status != 0:
        _answer(command, handles, NOT_FORKED)


def _answer(command: socket.socket, handles: WorkerHandles, pid: int) -> None:
    command.send(msgspec.msgpack.encode(Forked(slot=handles.slot, generation=handles.generation, pid=pid)))


def _run_worker(plan: ZygotePlan, handles: WorkerHandles, preloaded: Preloaded, command: socket.socket) -> None:
    """In the worker; never returns."""
    code = exit_codes.FAILED
    try:
        command.close()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _await_adoption(plan.supervisor_pid)
        _await_recognition(handles)
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


def _await_recognition(handles: WorkerHandles) -> None:
    """Until the supervisor knows this process as that of its slot. Raises Unknown."""
    cell = FleetPage(Segment.attach(handles.fleet_fd).view).workers[handles.slot]
    deadline_s = time.monotonic() + RECOGNITION_TIMEOUT_S
    while not (cell.is_alive and cell.pid == os.getpid()):
        if time.monotonic() > deadline_s:
            raise Unknown(f"slot={handles.slot} generation={handles.generation}")
        time.sleep(0.001)


def _await_adoption(supervisor_pid: int) -> None:
    """Until the process in between is gone: what follows ties this one's life to its parent."""
    deadline_s = time.monotonic() + REPARENT_TIMEOUT_S
    while os.getppid() != supervisor_pid and time.monotonic() < deadline_s:
        time.sleep(0.001)
