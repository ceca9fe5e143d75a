"""How flash-attn-4 is called, and how its kernels are kept. The package needs a Hopper GPU: this is one of its form, whose
compiler writes Python, with a linker that copies and a loader that runs what it is given."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from engine_core.attention import kept_kernels
from engine_core.attention.base import CudaMetadata
from engine_core.attention.fa4 import Fa4
from engine_core.attention.kept_kernels import CACHE_FOLDER, SWITCH

INTERFACE = '''
import os
from pathlib import Path
from types import SimpleNamespace

switch = os.environ.get("FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED")
cute = SimpleNamespace(runtime=SimpleNamespace(find_runtime_libraries=lambda enable_tvm_ffi: []))
OBJECT = """
def func(q, k, v, out, lse, scale, cu, cu_k, seqused_q, lengths, table, left, right, sink, sparse, aux, *semaphore):
    assert (lse, scale, cu_k, seqused_q, left, right, sink, sparse, aux) == (None, 0.5, *6 * [None], (None, None))
    out.copy_(q + 1000 * len(table) + 100 * len(lengths) + 10 * (cu is not None) + k[0, 0, 0, 0] - v[0, 0, 0, 0])
"""


class Cache(dict):
    if switch == "1":
        cache_path = Path(os.environ["FLASH_ATTENTION_CUTE_DSL_CACHE_DIR"])

    def _key_to_hash(self, key):
        return f"hash-{key}"


def _flash_attn_fwd(q, k, v, *, cu_seqlens_q, seqused_k, page_table, out, causal, max_seqlen_k, max_seqlen_q=None):
    _flash_attn_fwd.num_calls += 1
    cache = _flash_attn_fwd.compile_cache
    if causal not in cache:
        space = {}
        exec(OBJECT, space)
        cache[causal] = space["func"]
        if switch == "1":
            (Cache.cache_path / f"hash-{causal}.o").write_text(OBJECT)
    rest = [q.new_zeros(1)] if max_seqlen_k > 1000 else []
    cache[causal](
        q, k, v, out, None, 0.5, cu_seqlens_q, None, None, seqused_k, page_table, *4 * [None], (None, None), *rest
    )


_flash_attn_fwd.compile_cache, _flash_attn_fwd.num_calls = Cache(), 0
'''
LOADER = """
from pathlib import Path


def load_module(path):
    space = {}
    exec(Path(path).read_text(), space)
    return space
"""
LINKER = '#!/bin/sh\n[ "$1 $2" = "-shared -o" ] && cp "$4" "$3"\n'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """With the package installed, and a cache of compiled kernels beside it."""
    package, cache, linker = tmp_path / "flash_attn" / "cute", tmp_path / "cache", tmp_path / "cc"
    package.mkdir(parents=True)
    cache.mkdir()
    (package / "__init__.py").touch()
    (package / "interface.py").write_text(INTERFACE)
    (tmp_path / "tvm_ffi.py").write_text(LOADER)
    linker.write_text(LINKER)
    linker.chmod(0o700)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv(CACHE_FOLDER, str(cache))
    monkeypatch.setenv("CC", str(linker))
    monkeypatch.delenv(SWITCH, raising=False)
    monkeypatch.setattr(kept_kernels, "version", lambda name: "1")
    gpu = SimpleNamespace(name="GPU", multi_processor_count=1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    forget()
    yield tmp_path
    forget()
    os.environ.pop(SWITCH, None)  # Fa4 set it


def forget() -> None:
    """As in a new process."""
    for name in [name for name in sys.modules if name.split(".")[0] in ("flash_attn", "tvm_ffi")]:
        del sys.modules[name]


def mixed(attention: Fa4, width: int = 2, num_heads: int = 2) -> Tensor:
    q, pages = torch.zeros((3, num_heads, 4)), torch.full((8, 16, 1, 4), 7.0)
    ints = torch.ones(2, dtype=torch.int32)
    table = torch.zeros((2, width), dtype=torch.int32)
    out = torch.empty_like(q)
    attention.mixed(q, pages, pages - 2, CudaMetadata(ints, table, ints, ints, 0, (2, 1), (2, 1)), out)
    return out


def decode(attention: Fa4) -> Tensor:
    q, pages = torch.zeros((3, 2, 4)), torch.zeros((8, 16, 1, 4))
    return attention.decode(q, pages, pages, torch.zeros((3, 2), dtype=torch.int32), torch.ones(3, dtype=torch.int32))


def is_imported() -> bool:
    return "flash_attn.cute.interface" in sys.modules


def test_a_call_is_repeated_with_the_tensors_of_each(folder: Path) -> None:
    attention = Fa4()

    for _ in range(2):
        assert (mixed(attention) == 2212).all()  # 2 tables, 2 lengths, cu_seqlens, K above V by 2
        assert (decode(attention) == 3300).all()


def test_a_process_that_finds_its_kernels_does_not_import_the_compiler(folder: Path) -> None:
    first = Fa4()
    assert (mixed(first) == 2212).all()
    assert is_imported()
    forget()

    second = Fa4()

    assert (mixed(second) == 2212).all()
    assert (mixed(second) == 2212).all()
    assert not is_imported()
    assert (decode(second) == 3300).all()  # which the first one did not compile
    assert is_imported()


def other_version(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_kernels, "version", lambda name: "2")


def other_sources(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "flash_attn" / "cute" / "interface.py").write_text(INTERFACE + "\n# changed by hand\n")


def other_gpu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = SimpleNamespace(name="another GPU", multi_processor_count=1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)


def other_switches(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASH_ATTENTION_ARCH", "sm_90")


def damaged(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [kept] = (folder / "cache" / "tokenfleet").glob("*.so")
    kept.write_text("raise OSError('truncated')")


def without_library(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [note] = (folder / "cache" / "tokenfleet").glob("*.json")
    note.write_text(json.dumps(json.loads(note.read_text()) | {"libraries": ["/nowhere/libcute_dsl_runtime.so"]}))


def writable_by_others(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "cache" / "tokenfleet").chmod(0o777)


def switched_off(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "0")


@pytest.mark.parametrize(
    "change",
    [
        other_version,
        other_sources,
        other_gpu,
        other_switches,
        damaged,
        without_library,
        writable_by_others,
        switched_off,
    ],
)
def test_what_was_kept_for_something_else_or_cannot_be_trusted_is_compiled_again(
    change: Callable[[Path, pytest.MonkeyPatch], None], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixed(Fa4())
    forget()
    change(folder, monkeypatch)

    assert (mixed(Fa4()) == 2212).all()

    assert is_imported()


def test_other_shapes_have_kernels_of_their_own(folder: Path) -> None:
    mixed(Fa4())
    forget()

    assert (mixed(Fa4(), num_heads=4) == 2212).all()

    assert is_imported()


def test_a_kernel_that_was_compiled_again_is_kept_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mixed(Fa4())
    damaged(folder, monkeypatch)
    forget()
    mixed(Fa4())
    forget()

    assert (mixed(Fa4()) == 2212).all()

    assert not is_imported()


def test_the_group_of_a_volume_may_write_to_it(folder: Path) -> None:
    mixed(Fa4())
    (folder / "cache" / "tokenfleet").chmod(0o770)
    forget()

    mixed(Fa4())

    assert not is_imported()


@pytest.mark.parametrize("linker", ["/bin/false", "/nowhere/cc"])
def test_what_cannot_be_linked_is_not_kept(linker: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", linker)
    attention = Fa4()

    assert (mixed(attention) == 2212).all()

    assert [*(folder / "cache" / "tokenfleet").iterdir()] == []


def test_a_package_that_was_not_installed_as_one_keeps_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(kept_kernels, "version", version)

    assert (mixed(Fa4()) == 2212).all()

    assert not (folder / "cache" / "tokenfleet").exists()


def test_a_call_with_tensors_of_the_package_s_own_goes_through_it_every_time(folder: Path) -> None:
    attention = Fa4()

    for _ in range(2):
        assert (mixed(attention, width=100) == 2212).all()

    assert sys.modules["flash_attn.cute.interface"]._flash_attn_fwd.num_calls == 2
    assert not (folder / "cache" / "tokenfleet").exists()


@pytest.mark.parametrize(("asked", "seen"), [(None, "1"), ("0", "0")])
def test_compiled_kernels_are_kept_on_disk_unless_the_operator_says_no(
    asked: str | None, seen: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if asked is not None:
        monkeypatch.setenv(SWITCH, asked)

    mixed(Fa4())

    assert sys.modules["flash_attn.cute.interface"].switch == seen
    assert (folder / "cache" / "tokenfleet").exists() == (seen == "1")
