"""What every engine process makes of the descriptors it inherits, whichever engine runs in it."""

from engine_core.metrics import EngineMetrics
from engine_core.outbox import Outbox
from ipc.doorbell import Doorbell
from ipc.handles import EngineHandles
from ipc.ring import RingWriter
from ipc.segment import Segment


def attached_outbox(handles: EngineHandles) -> Outbox:
    return Outbox(
        [RingWriter(Segment.attach(fd).view) for fd in handles.ring_fds],
        [Doorbell(fd) for fd in handles.doorbell_fds],
    )


def attached_metrics(
    handles: EngineHandles, *, model_name: str, block_size: int, num_blocks: int, num_draft_places: int = 0
) -> EngineMetrics:
    """`block_size` in tokens; `num_draft_places`: the longest draft, 0 where nothing is guessed."""
    return EngineMetrics(
        Segment.attach(handles.metrics_fd).view,
        model_name=model_name,
        engine=handles.index,
        block_size=block_size,
        num_blocks=num_blocks,
        num_draft_places=num_draft_places,
    )
