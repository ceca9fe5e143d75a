"""Role entry of an engine: settings and descriptors in, step loop, exit code out.

Restart policy: always, except after exit code 3 (it cannot boot as configured). Stop deadline: one step. The broker
gone: running streams go on, the socket reconnects. A worker gone: its streams are cut within a step of its successor
or of the broker's word. The supervisor gone: its death signal ends this process.
"""

import gc
import logging
import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from config.model_folder import ModelFolder, ModelFolderError
from config.settings import EngineSettings, Settings
from config.speculative import speculative_config
from engine_core import early_context
from engine_core.attached import attached_metrics, attached_outbox
from engine_core.batch_state import BatchState
from engine_core.control import Profiler
from engine_core.drafting import Drafter, Pace, max_step_drafts
from engine_core.engine import Engine
from engine_core.errors import CannotBoot
from engine_core.grammar import GrammarCompiler
from engine_core.intake import Intake
from engine_core.ngram_proposer import NgramProposer
from engine_core.outbox import Outbox
from engine_core.plan import Runner
from engine_core.scheduler import Scheduler
from engine_core.sim import build_sim_runner
from engine_core.start_stages import StartStages
from ipc.fleet_page import Cell, FleetPage, State
from ipc.handles import EngineHandles
from ipc.process_memory import give_back_code, give_back_free_memory
from ipc.segment import Segment
from ipc.sockets import EngineSocket

logger = logging.getLogger(__name__)

EXIT_CANNOT_BOOT = 3
EXIT_ENGINE_GONE = 1  # to be started again


def run(settings: Settings, model: ModelFolder, handles: EngineHandles) -> None:
    """Serve until SIGTERM. Raises SystemExit(3) after one log line when the operator has to change something."""
    stop, stages = _StopFlag(), StartStages()
    stages.done("imports")
    if settings.engine.engine == "vllm":
        _run_vllm(settings, model, handles, stop)
        return
    cell = FleetPage(Segment.attach(handles.fleet_fd).view).engines[handles.index]
    cell.state = State.STARTING
    cell.beat()
    state = _build_state(settings, model)
    try:
        runner = _build_runner(settings, model, state, handles.index, _progress_into(cell, stop), cell.beat, stages)
        check_pool(settings, model, runner)
        runner.warm_up()
        stages.done("warm_up")
    except (CannotBoot, ModelFolderError) as error:
        logger.error("engine cannot boot", extra={"engine": handles.index, "reason": str(error)})
        raise SystemExit(EXIT_CANNOT_BOOT) from None
    scheduler = Scheduler(
        state,
        runner.num_blocks,
        settings.engine.max_num_batched_tokens,
        settings.engine.priority_ageing_s,
        build_drafter(settings.engine, state),
    )
    outbox = attached_outbox(handles)
    intake = Intake(
        scheduler,
        vocab_size=model.vocab_size,
        enable_prefix_caching=settings.engine.enable_prefix_caching,
        reader_generation=outbox.reader_generation,
        grammars=GrammarCompiler(model.tokenizer_path, model.vocab_size, model.eos_token_ids),
    )

    def stream_ids() -> list[int]:
        return [*scheduler.stream_ids, *intake.uncompiled]

    socket = EngineSocket(handles.broker_endpoint, handles.index, handles.generation, stream_ids)
    engine = _build_engine(settings, model, handles, cell, runner, scheduler, outbox, intake, socket)
    cell.progress_permille = 1000
    cell.beat()
    cell.state = State.READY
    stages.done("engine")
    stages.log()
    logger.info("engine ready", extra={"engine": handles.index, "num_blocks": runner.num_blocks})
    gc.freeze()  # what is here stays for life: the collector need not look at it again
    give_back_free_memory()
    give_back_code("libllvmlite")  # numba's compiler: the kernels are compiled
    engine.run(stop)
    cell.state = State.DRAINING
    socket.close()
    logger.info("engine stopped", extra={"engine": handles.index, "num_unfinished": len(scheduler.stream_ids)})


def _run_vllm(settings: Settings, model: ModelFolder, handles: EngineHandles, stop: "_StopFlag") -> None:
    from engine_core.vllm import process as vllm  # nothing of it is another engine's
    from engine_core.vllm.link import EngineGone

    try:
        vllm.run(settings, model, handles, stop)
    except CannotBoot as error:
        logger.error("engine cannot boot", extra={"engine": handles.index, "reason": str(error)})
        raise SystemExit(EXIT_CANNOT_BOOT) from None
    except EngineGone as error:
        logger.error("engine lost", extra={"engine": handles.index, "reason": str(error)})
        raise SystemExit(EXIT_ENGINE_GONE) from None


class _StopFlag:
    """True once SIGTERM has arrived. A terminal's Ctrl-C is the supervisor's business."""

    def __init__(self) -> None:
        self._is_set = False
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def __call__(self) -> bool:
        return self._is_set

    def _on_signal(self, _signal: int, _frame: FrameType | None) -> None:
        self._is_set = True


def _progress_into(cell: Cell, stop: _StopFlag) -> Callable[[int], None]:
    def progress(permille: int) -> None:
        if stop():
            raise SystemExit(0)  # nothing has been promised to anybody yet
        cell.progress_permille = permille
        cell.beat()

    return progress


def _build_state(settings: Settings, model: ModelFolder) -> BatchState:
    return BatchState(
        max_num_seqs=settings.engine.max_num_seqs,
        max_model_len=model.max_model_len,
        block_size=settings.engine.block_size,
        eos_token_ids=model.eos_token_ids,
        seed=settings.engine.seed,
    )


def _build_runner(
    settings: Settings,
    model: ModelFolder,
    state: BatchState,
    index: int,
    progress: Callable[[int], None],
    beat: Callable[[], None],
    stages: StartStages,
) -> Runner:
    if settings.engine.engine == "sim":
        return build_sim_runner(settings.engine, model, state)
    if settings.engine.device != "cpu":
        early_context.open_beside(index)
    gc.disable()  # of the 150 000 objects that come none is garbage: looking for some is a tenth of the import
    from engine_core.model_runner import build_runner  # torch: the sim engine starts without its second and 200 MB

    gc.freeze()
    gc.enable()
    stages.done("torch")
    return build_runner(settings, model, state, progress, beat, stages, index=index)


def build_drafter(settings: EngineSettings, state: BatchState) -> Drafter | None:
    """None without `--speculative-config`, which was checked at the start of the fleet."""
    if settings.speculative_config is None:
        return None
    config = speculative_config(settings.speculative_config)
    return Drafter(state, NgramProposer(config), Pace(config.pauses), max_step_drafts(config, state.max_num_seqs))


def check_pool(settings: Settings, model: ModelFolder, runner: Runner) -> None:
    """The pool must hold the longest sequence the model promises, unless the operator set its size by hand."""
    capacity = runner.num_blocks * settings.engine.block_size
    if capacity >= model.max_model_len:
        return
    if settings.engine.num_gpu_blocks_override is None:
        raise CannotBoot(
            f"the KV cache holds {capacity} tokens, one sequence may have {model.max_model_len}: "
            f"lower --max-model-len to {capacity} or raise --gpu-memory-utilization or --kv-cache-memory-bytes"
        )
    logger.warning(
        "the KV cache is smaller than the longest sequence",
        extra={"kv_tokens": capacity, "max_model_len": model.max_model_len},
    )


def _profiler(settings: Settings, index: int) -> Profiler | None:
    folder = settings.engine.torch_profiler_dir
    if folder is None or settings.engine.engine == "sim":
        return None
    from engine_core.torch_profiler import TorchProfiler

    return TorchProfiler(Path(folder), index)


def _build_engine(
    settings: Settings,
    model: ModelFolder,
    handles: EngineHandles,
    cell: Cell,
    runner: Runner,
    scheduler: Scheduler,
    outbox: Outbox,
    intake: Intake,
    socket: EngineSocket,
) -> Engine:
    return Engine(
        index=handles.index,
        generation=handles.generation,
        socket=socket,
        intake=intake,
        scheduler=scheduler,
        runner=runner,
        outbox=outbox,
        cell=cell,
        metrics=attached_metrics(
            handles,
            model_name=model.name,
            block_size=settings.engine.block_size,
            num_blocks=runner.num_blocks,
            num_draft_places=len(scheduler.counts.drafts.accepted_per_place),
        ),
        profiler=_profiler(settings, handles.index),
    )
