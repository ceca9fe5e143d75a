"""Role entry of the conversion of a GGUF model, with a progress bar: a process of its own, so that numpy and the weights
leave the machine's memory with it."""

import logging
import signal
import sys

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from config.model_folder import ModelFolderError
from engine_core.gguf_conversion import convert
from engine_core.model_source import find_model
from ops import exit_codes
from ops.plan import PreparePlan

logger = logging.getLogger(__name__)


def run(plan: PreparePlan) -> None:
    """Raises SystemExit(3) after one log line when the model cannot be converted."""
    signal.signal(signal.SIGTERM, lambda _signal, _frame: sys.exit(exit_codes.FAILED))  # removes its half-made folder
    source = find_model(plan.settings.model)
    logger.info("converting model", extra={"source": str(source.gguf), "folder": str(source.path)})
    columns = (TextColumn("converting weights"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("convert", total=None)
        try:
            convert(source, lambda done, total: progress.update(task, completed=done, total=total))
        except ModelFolderError as error:
            logger.error("model cannot be converted", extra={"reason": str(error)})
            raise SystemExit(exit_codes.CANNOT_BOOT) from None
