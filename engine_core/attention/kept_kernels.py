"""Kernels of flash-attn-4 as they were compiled, kept as shared objects: a start that finds its kernels here never imports the
package and its compiler, which takes 7 s. No torch.

    FOLDER/KEY.so    the package's object file, linked by the C compiler that Triton needs, too
    FOLDER/KEY.json  the libraries it wants, and what it was called with: null where the caller's tensors stood, too

A key hashes whatever the package chooses a kernel by. The folder lies beside the package's own cache of object files,
which only its compiler's runtime can load.
"""

import ctypes
import hashlib
import importlib
import json
import logging
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from getpass import getuser
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

SWITCH = "FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED"
CACHE_FOLDER = "FLASH_ATTENTION_CUTE_DSL_CACHE_DIR"
CHOOSING_VARIABLES = ("FLASH_ATTENTION_", "CUTE_DSL_")  # of the environment, by their first letters
DISTRIBUTIONS = ("flash-attn-4", "nvidia-cutlass-dsl", "apache-tvm-ffi", "quack-kernels")
FUNCTION = "func"  # the package exports it under this name
LINK_TIMEOUT_S = 60.0

Kernel = tuple[Callable[..., Any], list[Any]]  # and its arguments


class KeptKernels:
    """One folder of them, for one installation of the package."""

    def __init__(self, folder: Path, installation: str) -> None:
        self._folder, self._installation = folder, installation
        self._modules: list[Any] = []  # a function lives as long as what it was loaded from. Any: tvm_ffi is untyped

    def kernel_or_none(self, chosen_by: tuple[object, ...]) -> Kernel | None:
        """None: it was never kept, or cannot be loaded (any more)."""
        key = self._key(chosen_by)
        try:
            note = json.loads((self._folder / f"{key}.json").read_text())
        except (OSError, ValueError):
            return None
        if not _is_own(self._folder):
            logger.warning("kept kernels are not used: others may write there", extra={"folder": str(self._folder)})
            return None
        try:
            for library in note["libraries"]:
                ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)  # the object names no library of its own
            module = importlib.import_module("tvm_ffi").load_module(str(self._folder / f"{key}.so"))
            function = module[FUNCTION]
        except Exception as error:  # whatever a damaged file or another library leads to: the kernel is compiled again
            logger.warning("a kept kernel cannot be loaded", extra={"key": key, "reason": str(error)})
            return None
        self._modules.append(module)
        return function, [_as_called(argument) for argument in note["arguments"]]

    def keep(
        self, chosen_by: tuple[object, ...], object_file: Path, libraries: Sequence[str], arguments: Sequence[object]
    ) -> None:
        """Whatever goes wrong, the next start compiles again, and the log says why."""
        key = self._key(chosen_by)
        compiler = os.environ.get("CC") or next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
        if compiler is None:
            logger.info("a kernel is not kept: no C compiler links it", extra={"key": key})
            return
        try:
            note = json.dumps({"libraries": list(libraries), "arguments": list(arguments)})
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self._folder) as scratch:
                linked, noted = Path(scratch) / "linked", Path(scratch) / "noted"
                subprocess.run(
                    [compiler, "-shared", "-o", str(linked), str(object_file)],
                    check=True, capture_output=True, timeout=LINK_TIMEOUT_S,
                )  # fmt: skip
                noted.write_text(note)
                linked.replace(self._folder / f"{key}.so")
                noted.replace(self._folder / f"{key}.json")
        except (OSError, TypeError, subprocess.SubprocessError) as error:
            logger.warning("a kernel cannot be kept", extra={"key": key, "reason": str(error)})

    def _key(self, chosen_by: tuple[object, ...]) -> str:
        return hashlib.sha256(f"{self._installation} {chosen_by!r}".encode()).hexdigest()[:32]


def kept_kernels_or_none() -> KeptKernels | None:
    """None where the operator wants no kernels on disk, or the package was not installed as one."""
    if os.environ.get(SWITCH) != "1":
        return None
    try:
        versions = [f"{name} {version(name)}" for name in DISTRIBUTIONS]
    except PackageNotFoundError:
        return None
    variables = [
        f"{name}={value}"
        for name, value in sorted(os.environ.items())
        if name.startswith(CHOOSING_VARIABLES) and name != CACHE_FOLDER
    ]
    root = os.environ.get(CACHE_FOLDER) or Path(tempfile.gettempdir()) / getuser() / "flash_attention_cute_dsl_cache"
    return KeptKernels(Path(root) / "tokenfleet", " ".join((*versions, *variables, _sources_hash())))


def _sources_hash() -> str:
    """Of an installation that somebody changed by hand: 50 files, 15 ms."""
    spec = find_spec("flash_attn.cute")
    folders = spec.submodule_search_locations if spec is not None else None
    sources = hashlib.sha256()
    for folder in folders or ():
        for path in sorted(Path(folder).glob("*.py")):
            sources.update(path.name.encode() + path.read_bytes())
    return sources.hexdigest()


def _is_own(folder: Path) -> bool:
    """Nobody else may put code there. The group may: Kubernetes gives a volume's files to the pod's own (fsGroup)."""
    state = folder.stat()
    return state.st_uid == os.geteuid() and not state.st_mode & stat.S_IWOTH


def _as_called(argument: Any) -> Any:  # Any: JSON, in which tuples became lists
    return tuple(map(_as_called, argument)) if isinstance(argument, list) else argument
