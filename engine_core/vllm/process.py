"""Role entry of an engine that is vLLM's: start it or wait for it, then carry requests and tokens until told to stop.

Ends with an error when vLLM does: the supervisor starts this process again, which starts vLLM again, and the workers resume
what can go on. Exit code 3, as of engine_core.process: it cannot boot as configured.
"""

import logging
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import zmq

from config.lora import lora_paths
from config.model_folder import ModelFolder
from config.settings import EngineSettings, ModelSettings, Settings
from engine_core.attached import attached_metrics, attached_outbox
from engine_core.errors import CannotBoot
from engine_core.vllm.adapters import load_adapters
from engine_core.vllm.bridge import Bridge
from engine_core.vllm.layouts import UnknownVersion, layout_of
from engine_core.vllm.link import EngineGone, EngineLink, Facts
from engine_core.vllm.server import HeadlessServer
from engine_core.vllm.wire import Wire
from ipc.fleet_page import Cell, FleetPage, State
from ipc.handles import EngineHandles
from ipc.segment import Segment
from ipc.sockets import EngineSocket

logger = logging.getLogger(__name__)

PASSED_ON = ("max_num_batched_tokens", "kv_cache_memory_bytes", "num_gpu_blocks_override")


def run(settings: Settings, model: ModelFolder, handles: EngineHandles, should_stop: Callable[[], bool]) -> None:
    """Raises CannotBoot, EngineGone."""
    cell = FleetPage(Segment.attach(handles.fleet_fd).view).engines[handles.index]
    cell.state = State.STARTING
    cell.beat()
    folder = Path(tempfile.mkdtemp(prefix="tokenfleet-vllm-"))
    server: HeadlessServer | None = None
    try:
        link = _link(settings.engine, handles.index, folder)
        if settings.engine.vllm_python is not None:
            server = _started(settings, model, link)
        _serve(settings, model, handles, cell, link, server, should_stop)
        link.close()
    except EngineGone:
        if server is not None:
            server.kill()
        raise
    finally:
        if server is not None:
            server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _serve(
    settings: Settings,
    model: ModelFolder,
    handles: EngineHandles,
    cell: Cell,
    link: EngineLink,
    server: HeadlessServer | None,
    should_stop: Callable[[], bool],
) -> None:
    """`server`: the one whose engine core is waited for, if it is ours; one started elsewhere is waited for without end."""
    start_timeout_s = settings.ops.engine_start_timeout_s
    deadline_s = time.monotonic() + start_timeout_s

    def on_wait() -> None:
        cell.beat()
        if should_stop():
            raise SystemExit(0)  # nothing has been promised to anybody yet
        if server is not None:
            server.check()
            if time.monotonic() > deadline_s:
                raise EngineGone(f"vLLM is not ready after {start_timeout_s:g} s, --engine-start-timeout-s")

    logger.info("waiting for vLLM", extra={"engine": handles.index, "handshake": link.handshake_endpoint})
    facts = link.shake_hands(on_wait)
    wire = _wire(settings.engine, model, facts)
    loras = load_adapters(lora_paths(settings.engine.lora_modules), facts, link, wire, on_wait)
    outbox = attached_outbox(handles)
    bridge: Bridge | None = None
    socket = EngineSocket(
        handles.broker_endpoint, handles.index, handles.generation, lambda: bridge.stream_ids if bridge else ()
    )
    bridge = Bridge(
        index=handles.index,
        generation=handles.generation,
        socket=socket,
        link=link,
        wire=wire,
        outbox=outbox,
        cell=cell,
        metrics=attached_metrics(
            handles, model_name=model.name, block_size=facts.block_size, num_blocks=facts.num_gpu_blocks
        ),
        eos_token_ids=model.eos_token_ids,
        step_timeout_s=settings.ops.engine_step_timeout_s,
        loras=loras,
    )
    cell.progress_permille = 1000
    cell.beat()
    cell.state = State.READY
    logger.info(
        "engine ready", extra={"engine": handles.index, "num_blocks": facts.num_gpu_blocks, "vllm": facts.vllm_version}
    )
    try:
        while not should_stop():
            bridge.turn()  # when vLLM ends its connection does, which is looked at there
    finally:
        cell.state = State.DRAINING  # also when vLLM is gone: nobody is served while the rest of it ends
    socket.close()
    logger.info("engine stopped", extra={"engine": handles.index, "num_unfinished": len(bridge.stream_ids)})


def _link(settings: EngineSettings, index: int, folder: Path) -> EngineLink:
    """Engines that are started here connect through files; others over TCP, each engine of the fleet at a port of its own."""
    if settings.vllm_handshake is None:
        return EngineLink("tcp://127.0.0.1:*", f"ipc://{folder}/in", f"ipc://{folder}/out")
    address = urlsplit(settings.vllm_handshake)
    host, port = address.hostname, (address.port or 0) + index
    try:
        return EngineLink(f"tcp://{host}:{port}", f"tcp://{host}:*", f"tcp://{host}:*")
    except zmq.ZMQError as error:
        raise CannotBoot(f"--vllm-handshake: {host}:{port} cannot be bound: {error}") from None


def _started(settings: Settings, model: ModelFolder, link: EngineLink) -> HeadlessServer:
    engine = settings.engine
    assert engine.vllm_python is not None
    port = urlsplit(link.handshake_endpoint).port
    assert port is not None
    flags = (
        "--max-model-len", str(model.max_model_len), "--max-num-seqs", str(engine.max_num_seqs),
        "--seed", str(engine.seed), "--gpu-memory-utilization", str(engine.gpu_memory_utilization),
        "--dtype", settings.model.dtype, "--scheduling-policy", "priority",
        *(() if engine.enable_prefix_caching else ("--no-enable-prefix-caching",)),
        *(("--enable-lora",) if engine.lora_modules else ()),
        *_profiler_flags(engine.torch_profiler_dir),
        *flags_as_set(settings),
        *engine.vllm_args,
    )  # fmt: skip
    try:
        return HeadlessServer(engine.vllm_python, model.path, port, flags)
    except OSError as error:
        raise CannotBoot(f"--vllm-python {engine.vllm_python} cannot be started: {error.strerror}") from None


def _profiler_flags(folder: str | None) -> tuple[str, ...]:
    if folder is None:
        return ()
    return "--profiler-config", msgspec.json.encode({"profiler": "torch", "torch_profiler_dir": folder}).decode()


def flags_as_set(settings: Settings) -> tuple[str, ...]:
    """vLLM's defaults of these are its own, so it gets what the operator has changed."""
    pairs = (
        *((name, getattr(settings.engine, name), getattr(EngineSettings(), name)) for name in PASSED_ON),
        ("load_format", settings.model.load_format, ModelSettings().load_format),
    )
    return tuple(f"--{name.replace('_', '-')}={value}" for name, value, default in pairs if value != default)


def _wire(settings: EngineSettings, model: ModelFolder, facts: Facts) -> Wire:
    try:
        layout = layout_of(facts.vllm_version, settings.vllm_version)
    except UnknownVersion as error:
        raise CannotBoot(str(error)) from None
    if facts.max_model_len < model.max_model_len:
        raise CannotBoot(
            f"vLLM takes sequences of {facts.max_model_len} tokens, this fleet promises {model.max_model_len}: "
            f"give it --max-model-len {facts.max_model_len}"
        )
    if (
        facts.block_size < settings.block_size
    ):  # else prompts of other salts could share what is shorter than a block here
        raise CannotBoot(
            f"vLLM's KV blocks have {facts.block_size} tokens, --block-size is {settings.block_size}: lower it to "
            f"{facts.block_size}"
        )
    warn_of_other_max_num_seqs(settings.max_num_seqs, facts.max_num_seqs)
    return Wire(layout)


def warn_of_other_max_num_seqs(promised: int, vllms: int | None) -> None:
    """The broker reckons with the fleet's; a vLLM started elsewhere, or with a flag of its own, may run more or fewer."""
    if vllms is None or vllms == promised:
        return
    effect = (
        "requests that count as running wait in vLLM: waiting times are told too short, the queue is longer than its bound"
        if vllms < promised
        else "requests that run in vLLM count as waiting: waiting times are told too long, some are refused too early"
    )
    logger.warning(
        "vLLM has another --max-num-seqs than the fleet: give both the same",
        extra={"vllm": vllms, "fleet": promised, "effect": effect},
    )
