"""Which attention backend is taken, and what is said when it cannot be."""

import re
import tomllib
from pathlib import Path

import pytest

from engine_core.attention import choice
from engine_core.attention.choice import choose, default_block_size
from engine_core.errors import CannotBoot

PYPROJECT = Path(__file__).parents[3] / "pyproject.toml"
HOPPER, AMPERE, TURING = (9, 0), (8, 0), (7, 5)


@pytest.fixture(params=[(), ("fa2",), ("fa2", "fa4")], ids=lambda names: "+".join(names) or "nothing")
def installed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    names: tuple[str, ...] = request.param
    modules = {module for name in names for module in choice.PACKAGES[name]}
    monkeypatch.setattr(choice, "is_installed", lambda module: module in modules)
    return names


@pytest.mark.parametrize("capability", [HOPPER, AMPERE, TURING])
@pytest.mark.parametrize("head_dim", [64, 128, 96])
def test_the_default_block_size_is_a_page_of_the_backend_that_auto_takes(
    installed: tuple[str, ...], capability: tuple[int, int], head_dim: int
) -> None:
    block_size = default_block_size("auto", capability)

    name = choose("auto", head_dim=head_dim, block_size=block_size, capability=capability)

    if head_dim != 96:
        assert choice.BLOCK_SIZES[name] == block_size
    assert (name == "fa4") == ("fa4" in installed and capability == HOPPER and head_dim != 96)


def test_a_backend_that_is_not_installed_is_named(installed: tuple[str, ...]) -> None:
    for name in ("fa2", "fa4"):
        if name not in installed:
            with pytest.raises(CannotBoot, match=f"--attention-backend {name}.*flash_attn"):
                choose(name, head_dim=128, block_size=256, capability=HOPPER)


def test_the_extra_that_is_advised_has_the_package_and_needs_no_compiler_on_hopper(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """flash-attn 2 has no wheels: one who only wants flash-attn-4 must not be made to build it."""
    monkeypatch.setattr(choice, "is_installed", lambda _module: False)
    extras = tomllib.loads(PYPROJECT.read_text())["project"]["optional-dependencies"]

    for name, extra, package in (("fa4", "gpu", "flash-attn-4"), ("fa2", "gpu-fa2", "flash-attn")):
        with pytest.raises(CannotBoot, match=re.escape(f"(pip install '.[{extra}]')")):
            choose(name, head_dim=128, block_size=256, capability=HOPPER)
        assert [requirement.split("==")[0] for requirement in extras[extra]] == [package]


def test_a_block_that_is_no_page_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "is_installed", lambda _module: True)

    with pytest.raises(CannotBoot, match="--block-size 256"):
        choose("fa2", head_dim=128, block_size=128, capability=HOPPER)
    with pytest.raises(CannotBoot, match="power of two"):
        choose("triton", head_dim=128, block_size=48, capability=HOPPER)


def test_float32_is_left_to_the_kernels_that_compute_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "is_installed", lambda _module: True)

    assert choose("auto", head_dim=128, block_size=128, capability=HOPPER, is_float32=True) == "triton"
    with pytest.raises(CannotBoot, match="fa4 does not compute in float32"):
        choose("fa4", head_dim=128, block_size=128, capability=HOPPER, is_float32=True)
