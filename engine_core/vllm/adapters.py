"""LoRA adapters of an engine core: loaded before it counts as ready, so that a wrong one is a line at the start."""

from collections.abc import Callable, Mapping

from engine_core.errors import CannotBoot
from engine_core.vllm.calls import Calls
from engine_core.vllm.link import EngineGone, EngineLink, Facts
from engine_core.vllm.wire import ENGINE_CORE_DEAD, LoraRequest, UtilityOutput, Wire

POLL_MS = 200


def load_adapters(
    paths: Mapping[str, str], facts: Facts, link: EngineLink, wire: Wire, on_wait: Callable[[], None]
) -> dict[str, LoraRequest]:
    """By name. `on_wait` is called several times a second and may raise. Raises CannotBoot, EngineGone."""
    if paths and facts.supports_lora is False:
        raise CannotBoot("--lora-modules: vLLM runs without --enable-lora")
    loras = {name: LoraRequest(name, number, path) for number, (name, path) in enumerate(paths.items(), 1)}
    calls = Calls(link, wire)
    answers: list[UtilityOutput] = []
    for lora in loras.values():
        calls.ask("add_lora", (lora,), answers.append)
        while not answers:
            if not link.output.poll(POLL_MS):
                on_wait()
                link.check()
            for frames in link.receive():
                if frames[0] == ENGINE_CORE_DEAD:
                    raise EngineGone("vLLM's engine core died")
                outputs = wire.outputs(frames[0])
                if outputs.utility_output is not None:
                    calls.take(outputs.utility_output)
        answer = answers.pop()
        if answer.failure_message is not None:
            raise CannotBoot(f"--lora-modules {lora.name}={lora.path}: {answer.failure_message}")
    return loras
