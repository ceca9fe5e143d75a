"""Every value an operator may set, as frozen structs grouped by the role that reads them.

A field's name is its flag (`max_num_seqs` is `--max-num-seqs`), its key in the TOML file (`[engine] max_num_seqs`) and,
upper-cased behind `TOKENFLEET_`, its environment variable; names are therefore unique over all groups. Where vLLM has
the thing, the name is vLLM's. Units are in the name unless it is vLLM's. `None` means: derived at start, see the text.
"""

from typing import Annotated, Literal

from msgspec import Meta, Struct

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
ReasoningParserName = Literal["auto", "none", "delimiters", "deepseek_r1", "glm45", "mistral", "qwen3", "seed_oss"]
ToolCallParserName = Literal["auto", "none", "hermes", "llama3_json", "mistral", "pythonic", "qwen3_coder", "qwen3_xml"]
Count = Annotated[int, Meta(ge=1)]


class ModelSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which model, and how it is called."""

    model: Annotated[
        str | None, Meta(description="model folder or .gguf file; without it the embedded SmolLM2-135M-Instruct")
    ] = None
    served_model_name: Annotated[
        tuple[str, ...],
        Meta(description="names clients may ask for; the first is reported. Default: the folder's name"),
    ] = ()
    dtype: Annotated[Dtype, Meta(description="weights and activations; auto takes the checkpoint's")] = "auto"
    max_model_len: Annotated[
        Annotated[int, Meta(ge=2)] | None,
        Meta(description="longest prompt plus output in tokens; default: what the model declares"),
    ] = None
    load_format: Annotated[Literal["auto", "dummy"], Meta(description="dummy: random weights, for benchmarks")] = "auto"
    chat_template: Annotated[str | None, Meta(description="file with a Jinja chat template instead of the model's")] = (
        None
    )
    cache_dir: Annotated[
        str | None, Meta(description="where converted GGUF weights are kept; default $XDG_CACHE_HOME/tokenfleet")
    ] = None


class ServerSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The HTTP side: read by the API workers."""

    host: Annotated[str, Meta(description="address to serve on")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="port to serve on; 0 picks a free one")] = 8000
    uds: Annotated[str | None, Meta(description="serve on this Unix socket instead of host and port")] = None
    workers: Annotated[
        Annotated[int, Meta(ge=1, le=256)] | None,
        Meta(description="API worker processes; default: usable cores less the engine's"),
    ] = None
    api_key: Annotated[tuple[str, ...], Meta(description="keys a client must present as bearer token; none: open")] = ()
    api_key_file: Annotated[
        str | None, Meta(description="TOML file of named keys with limits, read again when it changes")
    ] = None
    ssl_keyfile: Annotated[str | None, Meta(description="private key in PEM; with --ssl-certfile: serve https")] = None
    ssl_certfile: Annotated[str | None, Meta(description="certificate chain in PEM")] = None
    ssl_ca_certs: Annotated[
        str | None, Meta(description="certificates in PEM that clients' certificates must be signed by")
    ] = None
    ssl_cert_reqs: Annotated[
        int,
        Meta(
            ge=0, le=2, description="certificates of clients: 0 none, 1 if they have one, 2 always; with --ssl-ca-certs"
        ),
    ] = 0
    ui: Annotated[bool, Meta(description="serve a page at / to chat with the model")] = True
    allowed_origins: Annotated[tuple[str, ...], Meta(description="CORS origins; none: CORS is off")] = ()
    max_body_bytes: Annotated[int, Meta(ge=1024, description="larger request bodies are refused with 413")] = (
        32 * 1024 * 1024
    )
    max_prompts_per_request: Annotated[int, Meta(ge=1, description="prompts in one completions request")] = 1024
    max_n: Annotated[int, Meta(ge=1, description="choices in one request")] = 128
    max_stop_strings: Annotated[int, Meta(ge=0, description="stop strings in one request")] = 16
    reasoning_parser: Annotated[
        ReasoningParserName,
        Meta(
            description="how answers show their reasoning; auto: by the markers in the chat template, delimiters: yours"
        ),
    ] = "auto"
    reasoning_start_str: Annotated[
        str | None, Meta(description="what begins the reasoning, for --reasoning-parser delimiters")
    ] = None
    reasoning_end_str: Annotated[
        str | None, Meta(description="what ends the reasoning, for --reasoning-parser delimiters")
    ] = None
    tool_call_parser: Annotated[
        ToolCallParserName,
        Meta(description="the form in which the model writes calls of tools; auto: by its chat template"),
    ] = "auto"
    enable_auto_tool_choice: Annotated[
        bool, Meta(description="calls may be left to the model; vLLM wants it said, here it is so unless it is denied")
    ] = True
    trust_request_chat_template: Annotated[
        bool, Meta(description="take chat templates from requests: whoever may send requests is trusted with them")
    ] = False
    stream_interval: Annotated[
        int, Meta(ge=1, description="tokens that share an event of a stream; a request may ask for more")
    ] = 1
    stream_buffer_bytes: Annotated[
        int, Meta(ge=4096, description="unsent bytes at which one slow client's stream is aborted")
    ] = 4 * 1024 * 1024
    timeout_keep_alive_s: Annotated[
        float, Meta(gt=0, description="idle connections, and requests that are not whole by then, are closed after")
    ] = 75.0
    dead_client_timeout_s: Annotated[
        float, Meta(ge=1, description="a connection whose client acknowledges, or takes, nothing for so long is closed")
    ] = 60.0
    resume: Annotated[
        bool, Meta(description="requests whose engine died go on in its successor; else they end with an error")
    ] = True
    resume_timeout_s: Annotated[float, Meta(gt=0, description="a request whose engine is not back by then fails")] = (
        300.0
    )
    resume_log_bytes: Annotated[
        int,
        Meta(ge=1 << 16, description="delivered tokens a worker keeps as they came, before it sorts them by request"),
    ] = 16 * 1024 * 1024
    response_store_bytes: Annotated[
        int, Meta(ge=0, description="memory of the fleet for stored answers of /v1/responses; 0: none is stored")
    ] = 64 * 1024 * 1024
    response_store_entries: Annotated[int, Meta(ge=1, description="most answers of /v1/responses that are stored")] = (
        16384
    )
    response_store_age_s: Annotated[float, Meta(gt=0, description="answers of /v1/responses are stored for")] = 86400.0
    server_dev_mode: Annotated[
        bool, Meta(description="serve what an operator needs and nobody else: /abort_requests, /reset_prefix_cache, …")
    ] = False
    enable_tokenizer_info_endpoint: Annotated[
        bool, Meta(description="serve the tokenizer's settings at /tokenizer_info")
    ] = False
    embedding_pooling: Annotated[
        Literal["last", "mean"],
        Meta(description="what /v1/embeddings gives: the last token's hidden state, or the mean"),
    ] = "last"


class EngineSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The engine: read by the engine processes, and by the workers where they must agree (block size, hash seed)."""

    engine: Annotated[
        Literal["core", "sim", "vllm"],
        Meta(description="core computes; sim answers scripted tokens; vllm is vLLM's own engine core"),
    ] = "core"
    engines: Annotated[int, Meta(ge=1, le=64, description="engine processes")] = 1
    device: Annotated[Literal["auto", "cpu", "cuda"], Meta(description="auto takes CUDA when there is one")] = "auto"
    attention_backend: Annotated[
        Literal["auto", "fa4", "fa2", "triton", "reference"],
        Meta(description="attention on CUDA; auto takes the fastest one installed"),
    ] = "auto"
    engine_threads: Annotated[Count | None, Meta(description="CPU threads per engine; default: usable cores")] = None
    max_num_seqs: Annotated[int, Meta(ge=1, description="sequences running at once")] = 256
    max_num_batched_tokens: Annotated[int, Meta(ge=1, description="tokens computed in one step")] = 2048
    block_size: Annotated[int, Meta(ge=1, description="tokens per KV block")] = 16
    gpu_memory_utilization: Annotated[float, Meta(gt=0, le=1, description="share of GPU memory for this engine")] = 0.9
    kv_cache_memory_bytes: Annotated[Count | None, Meta(description="size of the KV pool; default: derived")] = None
    num_gpu_blocks_override: Annotated[
        Annotated[int, Meta(ge=2)] | None, Meta(description="number of KV blocks, whatever memory says")
    ] = None
    enable_prefix_caching: Annotated[bool, Meta(description="reuse KV blocks of equal prompt prefixes")] = True
    disable_cascade_attn: Annotated[
        bool, Meta(description="on CUDA, read K/V that running requests share anew for each of them")
    ] = False
    speculative_config: Annotated[
        str | None,
        Meta(description="guess tokens by prompt lookup: a JSON object in vLLM's form, method ngram"),
    ] = None
    seed: Annotated[int, Meta(description="seed of sampling for requests that bring none")] = 0
    priority_ageing_s: Annotated[
        float, Meta(ge=0, description="a waiting request gains one priority per this long; 0: priorities are strict")
    ] = 30.0
    torch_profiler_dir: Annotated[
        str | None,
        Meta(description="serve /start_profile and /stop_profile, which leave engine traces and worker stacks here"),
    ] = None
    vllm_python: Annotated[
        str | None,
        Meta(description="engine vllm: interpreter that has vLLM; the one engine is a `vllm serve --headless` of it"),
    ] = None
    vllm_args: Annotated[
        tuple[str, ...],
        Meta(description="engine vllm: argument for `vllm serve`; what stands behind -- is taken so too"),
    ] = ()
    vllm_handshake: Annotated[
        str | None,
        Meta(
            description="engine vllm: tcp://HOST:PORT where an engine started elsewhere says HELLO; engine n at PORT + n"
        ),
    ] = None
    lora_modules: Annotated[
        tuple[str, ...],
        Meta(description="engine vllm: NAME=PATH of a LoRA adapter that clients may ask for by its name"),
    ] = ()
    vllm_version: Annotated[
        str | None,
        Meta(description="engine vllm: take messages to have this version's layout, whatever vLLM says it is"),
    ] = None
    sim_step_ms: Annotated[float, Meta(ge=0, description="sim engine: duration of a step; 0 is back to back")] = 20.0
    sim_prefill_us_per_token: Annotated[
        float, Meta(ge=0, description="sim engine: added to a step per prefilled token")
    ] = 0.0


class BrokerSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Admission: read by the broker."""

    max_num_queued_reqs: Annotated[
        int, Meta(ge=0, description="requests waiting for an engine beyond max_num_seqs; more get 503")
    ] = 2048
    max_num_queued_tokens: Annotated[
        int, Meta(ge=0, description="prompt tokens waiting for an engine; more get 503, a lone request never")
    ] = 4 * 1024 * 1024


LONGEST_BEAT_S = 1.0


class OpsSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Running the fleet: read by the supervisor."""

    ops_host: Annotated[str, Meta(description="address of the ops port")] = "127.0.0.1"
    ops_port: Annotated[
        int, Meta(ge=0, le=65535, description="probes and metrics of the supervisor; 0 picks a free one")
    ] = 8001
    log_level: Annotated[Literal["debug", "info", "warning", "error"], Meta(description="least severe line logged")] = (
        "info"
    )
    log_format: Annotated[
        Literal["text", "json"], Meta(description="one line per event, for people or for machines")
    ] = "text"
    otlp_traces_endpoint: Annotated[
        str | None,
        Meta(description="URL of an OTLP/HTTP collector that gets a trace per request; needs the extra otel"),
    ] = None
    ring_bytes: Annotated[
        int, Meta(ge=65536, description="size of one token ring (engine to worker), a power of two")
    ] = 1 << 20
    heartbeat_timeout_s: Annotated[
        float, Meta(gt=0, description="a loop silent for longer is aborted and replaced")
    ] = 10.0
    engine_step_timeout_s: Annotated[
        float, Meta(gt=0, description="an engine busy with one step for longer is aborted and replaced")
    ] = 120.0
    engine_start_timeout_s: Annotated[
        float, Meta(gt=0, description="an engine not ready by then is replaced; a vLLM started elsewhere is waited for")
    ] = 900.0
    drain_timeout_s: Annotated[float, Meta(ge=0, description="after SIGTERM running streams may take this long")] = (
        120.0
    )
    pre_stop_s: Annotated[
        float, Meta(ge=0, description="after SIGTERM new requests are still accepted for this long")
    ] = 0.0
    restart_backoff_max_s: Annotated[
        float, Meta(gt=0, description="longest pause between two restarts of one role")
    ] = 30.0

    @property
    def beat_s(self) -> float:
        """How often an idle loop shows that it lives: four times in the silence it is given, or once a second. A beat
        costs a sleeping process some 300 us, most of it for caches that went cold."""
        return min(LONGEST_BEAT_S, self.heartbeat_timeout_s / 4)


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of it. Built once by `config.load`, passed down, never looked up from a global."""

    model: ModelSettings = ModelSettings()
    server: ServerSettings = ServerSettings()
    engine: EngineSettings = EngineSettings()
    broker: BrokerSettings = BrokerSettings()
    ops: OpsSettings = OpsSettings()
