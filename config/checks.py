"""Rules between settings, and between settings and the model: what no single field can know. All faults at once."""

import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from config.api_keys import KeyFileError, read_api_keys
from config.load import Configuration
from config.lora import lora_paths
from config.model_folder import ModelFolder
from config.packages import is_installed
from config.settings import Settings
from config.speculative import speculative_config

_MAX_UDS_BYTES = 107  # sun_path, less its terminating zero
_NO_PASSWORD = ""  # else OpenSSL asks for it on the terminal
_OF_CORES_KERNELS = ("attention_backend", "disable_cascade_attn")  # vLLM's have other names, and 0.33 no cascade
_OF_A_VLLM_STARTED_HERE = ("max_num_batched_tokens", "kv_cache_memory_bytes", "num_gpu_blocks_override", "load_format")
_MIN_RING_BYTES_PER_SEQ = 64  # a step's token and finish of every sequence fit one ring several times over


def faults_of(configuration: Configuration) -> list[str]:
    """One line per rule that is broken; none: the configuration can be served."""
    rules: tuple[Callable[[Configuration], Iterator[str]], ...] = (
        _check_ring,
        _check_addresses,
        _check_timeouts,
        _check_batch,
        _check_tracing,
        _check_vllm,
        _check_reasoning,
        _check_tls,
        _check_key_file,
        _check_speculation,
    )
    return [fault for rule in rules for fault in rule(configuration)]


def faults_with_model(settings: Settings, model: ModelFolder) -> list[str]:
    """Rules that need the model's own facts."""
    engine = settings.engine
    faults = []
    if engine.block_size > model.max_model_len:
        faults.append(
            f"--block-size {engine.block_size} exceeds the longest sequence of {model.max_model_len} tokens: lower it"
        )
    for name in lora_paths(engine.lora_modules):
        if name in model.served_names:
            faults.append(f"--lora-modules: {name} is the name of the model itself")
    if not model.eos_token_ids:
        faults.append(f"{model.path}/config.json names no eos_token_id: outputs would never end by themselves")
    return faults


def _check_ring(configuration: Configuration) -> Iterator[str]:
    ring_bytes = configuration.settings.ops.ring_bytes
    if ring_bytes & (ring_bytes - 1):
        below = 1 << (ring_bytes.bit_length() - 1)
        yield f"--ring-bytes {ring_bytes} is not a power of two: take {below} or {2 * below}"
    needed = configuration.settings.engine.max_num_seqs * _MIN_RING_BYTES_PER_SEQ
    if ring_bytes < needed:
        yield (
            f"--ring-bytes {ring_bytes} is too small for --max-num-seqs {configuration.settings.engine.max_num_seqs}: "
            f"take {1 << (needed - 1).bit_length()}"
        )


def _check_addresses(configuration: Configuration) -> Iterator[str]:
    server, ops = configuration.settings.server, configuration.settings.ops
    if server.uds is not None:
        for name in ("host", "port"):
            if configuration.is_set(name):
                yield f"--uds and --{name} exclude each other ({name} comes from {configuration.origins[name]})"
        if len(server.uds.encode()) > _MAX_UDS_BYTES:
            yield f"--uds {server.uds} is longer than the {_MAX_UDS_BYTES} bytes a socket's path may have"
    elif server.port and server.port == ops.ops_port:
        yield f"--port and --ops-port are both {server.port}: give them different ports"


def _check_timeouts(configuration: Configuration) -> Iterator[str]:
    engine, ops = configuration.settings.engine, configuration.settings.ops
    if engine.engine == "sim" and engine.sim_step_ms / 1000 >= ops.heartbeat_timeout_s:
        yield (
            f"--sim-step-ms {engine.sim_step_ms:g} is not below --heartbeat-timeout-s {ops.heartbeat_timeout_s:g}: "
            "every step would look like a hang"
        )


def _check_batch(configuration: Configuration) -> Iterator[str]:
    engine, model = configuration.settings.engine, configuration.settings.model
    if model.max_model_len is not None and engine.block_size > model.max_model_len:
        yield f"--block-size {engine.block_size} exceeds --max-model-len {model.max_model_len}: lower it"


def _check_tracing(configuration: Configuration) -> Iterator[str]:
    endpoint = configuration.settings.ops.otlp_traces_endpoint
    if endpoint is None:
        return
    if not endpoint.startswith(("http://", "https://")):
        yield f"--otlp-traces-endpoint {endpoint} is not an http or https URL, as http://collector:4318/v1/traces"
    if not is_installed("opentelemetry.exporter.otlp.proto.http"):
        yield "--otlp-traces-endpoint needs packages that are not installed: pip install '.[otel]'"


def _check_vllm(configuration: Configuration) -> Iterator[str]:
    engine = configuration.settings.engine
    if engine.engine != "vllm":
        for name in ("vllm_python", "vllm_args", "vllm_handshake", "vllm_version", "lora_modules"):
            if configuration.is_set(name):
                yield f"--{name.replace('_', '-')} is for --engine vllm only: set that too, or drop it"
        return
    if (engine.vllm_python is None) == (engine.vllm_handshake is None):
        yield (
            "--engine vllm needs either --vllm-python, the interpreter of a vLLM to be started, or --vllm-handshake, where "
            "one started elsewhere says HELLO"
        )
    if engine.vllm_python is not None and engine.engines > 1:
        yield (
            f"--vllm-python starts one vLLM, not the {engine.engines} of --engines: start them yourself, each on its devices, "
            "and give --vllm-handshake"
        )
    for name in _OF_CORES_KERNELS:
        if configuration.is_set(name):
            yield f"{_flag(name)} chooses among the kernels of --engine core: what vLLM is to take stands behind --"
    for name in _OF_A_VLLM_STARTED_HERE:
        if engine.vllm_python is None and configuration.is_set(name):
            yield f"{_flag(name)} is for a vLLM that is started here, with --vllm-python: give it to yours, and drop it here"
    if engine.vllm_python is None and engine.vllm_args:
        yield "--vllm-args are for a vLLM that is started here, with --vllm-python"
    if any(argument.split("=")[0] == "--lora-modules" for argument in engine.vllm_args):
        yield "--lora-modules belongs before --: a vLLM without its API server would know no names"
    try:
        lora_paths(engine.lora_modules)
    except ValueError as error:
        yield f"--lora-modules: {error}"
    address = urlsplit(engine.vllm_handshake or "tcp://localhost:1")
    if address.scheme != "tcp" or not address.hostname or not _has_port(address):
        yield f"--vllm-handshake {engine.vllm_handshake} is not tcp://HOST:PORT"


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _has_port(address: SplitResult) -> bool:
    try:
        return bool(address.port)
    except ValueError:
        return False


def _check_reasoning(configuration: Configuration) -> Iterator[str]:
    server = configuration.settings.server
    has_both = bool(server.reasoning_start_str and server.reasoning_end_str)
    if server.reasoning_parser == "delimiters" and not has_both:
        yield "--reasoning-parser delimiters needs --reasoning-start-str and --reasoning-end-str: give both"
    for name in ("reasoning_start_str", "reasoning_end_str"):
        if server.reasoning_parser != "delimiters" and configuration.is_set(name):
            yield f"--{name.replace('_', '-')} is for --reasoning-parser delimiters only: set that too, or drop it"


def _check_tls(configuration: Configuration) -> Iterator[str]:
    """Loaded here as the workers will load it: one line now, not a worker that cannot start."""
    keyfile, certfile = configuration.settings.server.ssl_keyfile, configuration.settings.server.ssl_certfile
    ca_certs, cert_reqs = configuration.settings.server.ssl_ca_certs, configuration.settings.server.ssl_cert_reqs
    if (ca_certs is None) != (cert_reqs == ssl.CERT_NONE):
        yield "--ssl-ca-certs and --ssl-cert-reqs 1 or 2 go together: give both"
    if keyfile is None and certfile is None:
        if ca_certs is not None:
            yield "--ssl-ca-certs is for https: give --ssl-keyfile and --ssl-certfile too"
        return
    if keyfile is None or certfile is None:
        yield "--ssl-keyfile and --ssl-certfile go together: give both"
        return
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certfile, keyfile, password=_NO_PASSWORD)
    except (OSError, ValueError) as error:  # SSLError is an OSError
        yield f"--ssl-certfile {certfile} with --ssl-keyfile {keyfile} cannot be used: {_reason(error)}"
    if ca_certs is None:
        return
    try:
        context.load_verify_locations(ca_certs)
    except (OSError, ValueError) as error:
        yield f"--ssl-ca-certs {ca_certs} cannot be used: {_reason(error)}"


def _reason(error: OSError | ValueError) -> str:
    return getattr(error, "strerror", None) or str(error)


def _check_key_file(configuration: Configuration) -> Iterator[str]:
    file = configuration.settings.server.api_key_file
    if file is None:
        return
    try:
        read_api_keys(Path(file))
    except KeyFileError as error:
        yield f"--api-key-file {error}"


def _check_speculation(configuration: Configuration) -> Iterator[str]:
    engine = configuration.settings.engine
    if engine.speculative_config is None:
        return
    if engine.engine == "vllm":
        yield "--speculative-config is for --engine core: what vLLM is to guess stands behind --, with its own flags"
        return
    if engine.engine == "sim":
        yield "--speculative-config is for --engine core: the sim engine computes nothing that could be guessed"
    try:
        speculative_config(engine.speculative_config)
    except ValueError as error:
        yield f"--speculative-config: {error}"
