"""One worker, whole but for its sockets, over a scripted engine."""

from pathlib import Path
from typing import Any

import pytest

from apiserver.preload import Preloaded, preload
from config.model_folder import read_model_folder
from config.settings import ModelSettings
from tests.unit.apiserver.worker_rig import TEXT, MakeRig, Script, WorkerRig, make_model_folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def preloaded(folder: Path) -> Preloaded:
    return preload(read_model_folder(folder, ModelSettings()))


@pytest.fixture
def make_rig(folder: Path, preloaded: Preloaded) -> MakeRig:
    def make(script: Script | None = None, **options: Any) -> WorkerRig:
        return WorkerRig(folder, script, preloaded=preloaded, **{"text": TEXT, **options})

    return make


@pytest.fixture
def rig(make_rig: MakeRig) -> WorkerRig:
    return make_rig()
