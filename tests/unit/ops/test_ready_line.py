import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from config.model_folder import ModelFolder, SamplingDefaults
from config.settings import OpsSettings, ServerSettings, Settings
from ops import ready_line
from ops.resources import Resources


def model(*, name: str = "m", chat_template: str | None = "{{ messages }}") -> ModelFolder:
    return ModelFolder(
        path="/models/m", architecture="LlamaForCausalLM", vocab_size=8, max_model_len=64, eos_token_ids=(2,),
        bos_token_id=None, served_names=(name,), chat_template=chat_template, sampling_defaults=SamplingDefaults(),
        hf_config={},
    )  # fmt: skip


@pytest.fixture(autouse=True)
def runtime_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


@pytest.fixture
def resources() -> Iterator[Resources]:
    yield from opened(Settings(server=ServerSettings(host="0.0.0.0", port=0), ops=OpsSettings(ops_port=0)))


def opened(settings: Settings) -> Iterator[Resources]:
    resources = Resources(settings, num_workers=1)
    yield resources
    resources.stop_listening()
    resources.ops_listener.close()
    resources.remove()


def command(settings: Settings, served: ModelFolder, resources: Resources) -> list[str]:
    return shlex.split(ready_line.text(settings, served, resources).splitlines()[1])


def test_the_command_asks_a_short_question_of_the_model_that_is_served(resources: Resources) -> None:
    curl = command(Settings(), model(name="it's mine"), resources)

    port = resources.listeners[0].getsockname()[1]
    assert curl[:2] == ["curl", f"http://127.0.0.1:{port}/v1/chat/completions"]
    body = json.loads(curl[curl.index("-d") + 1])
    assert body["model"] == "it's mine" and body["max_tokens"] <= 64 and body["temperature"] == 0


def test_a_model_without_a_chat_template_is_asked_to_complete(resources: Resources) -> None:
    curl = command(Settings(), model(chat_template=None), resources)

    assert curl[1].endswith("/v1/completions")
    assert "prompt" in json.loads(curl[curl.index("-d") + 1])


def test_a_key_is_asked_for_and_never_shown(resources: Resources) -> None:
    settings = Settings(server=ServerSettings(api_key=("s3cret",)))

    text = ready_line.text(settings, model(), resources)

    assert "authorization: Bearer YOUR_KEY" in text and "s3cret" not in text


def test_a_unix_socket_is_named(tmp_path: Path) -> None:
    uds = str(tmp_path / "a socket")
    settings = Settings(server=ServerSettings(uds=uds), ops=OpsSettings(ops_port=0))
    for resources in opened(settings):
        curl = command(settings, model(), resources)

        assert curl[curl.index("--unix-socket") + 1] == uds
        assert "http://localhost/v1/chat/completions" in curl
