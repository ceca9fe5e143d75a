"""The four dashboards: fleet overview, one worker per core, engine, objectives. Scrape the ops port: it always answers."""

from ops.monitoring.grafana import SELECTOR, Dashboard, Panel, Target, Unit
from ops.monitoring.objectives import OBJECTIVES, Objective

WINDOW = "$__rate_interval"
# Resident bytes of those there are: one more place is kept free, for the successor of a worker that is replaced.
LIVING_WORKERS = f'sum by (index) (tokenfleet:process_resident_memory_bytes{{{SELECTOR},role="worker"}}) > 0'


def _rate(metric: str, by: str = "") -> str:
    return f"sum{f' by ({by})' if by else ''} (rate({metric}{{{SELECTOR}}}[{WINDOW}]))"


def _gauge(metric: str, by: str = "", combine: str = "sum") -> str:
    return f"{combine}{f' by ({by})' if by else ''} ({metric}{{{SELECTOR}}})"


def _quantiles(histogram: str, *, by: str = "") -> tuple[Target, ...]:
    labels = ", ".join(filter(None, ("le", by)))
    rate = f"sum by ({labels}) (rate({histogram}_bucket{{{SELECTOR}}}[{WINDOW}]))"
    prefix = f"{{{{{by}}}}} " if by else ""
    return tuple(
        Target(f"histogram_quantile({quantile}, {rate})", f"{prefix}p{quantile * 100:.0f}")
        for quantile in (0.5, 0.95, 0.99)
    )


def _latency(title: str, histogram: str, text: str) -> Panel:
    return Panel(title, text, _quantiles(histogram), "s")


def _stat(title: str, expr: str, text: str, unit: Unit = "short") -> Panel:
    return Panel(title, text, (Target(expr, ""),), unit, kind="stat", width=4)


FLEET = Dashboard(
    "tokenfleet-fleet",
    "tokenfleet / fleet",
    "Requests, tokens, latencies, refusals and the processes that serve them.",
    (
        _stat("Requests / s", _rate("http_requests_total"), "Answered HTTP requests, without probes.", "reqps"),
        _stat("Output tokens / s", _rate("vllm:generation_tokens_total"), "Tokens generated."),
        _stat("Running", _gauge("vllm:num_requests_running"), "Requests in the engines' batches."),
        _stat("Waiting", _gauge("vllm:num_requests_waiting"), "Requests in the engines' queues."),
        _stat("Workers ready", f'sum (tokenfleet:processes_ready{{{SELECTOR},role="worker"}})', "Ready and beating."),
        _stat("Engines ready", f'sum (tokenfleet:processes_ready{{{SELECTOR},role="engine"}})', "Ready and beating."),
        Panel("HTTP requests", "By status.", (Target(_rate("http_requests_total", "status"), "{{status}}"),), "reqps"),
        Panel(
            "Tokens",
            "Prompts, what of them came out of the prefix cache, and output.",
            (
                Target(_rate("vllm:prompt_tokens_total"), "prompt"),
                Target(_rate("vllm:prompt_tokens_cached_total"), "cached prompt"),
                Target(_rate("vllm:generation_tokens_total"), "output"),
            ),
        ),
        Panel(
            "Requests in the engines",
            "The batch, and what waits for a place in it.",
            (
                Target(_gauge("vllm:num_requests_running"), "running"),
                Target(_gauge("vllm:num_requests_waiting"), "waiting"),
            ),
        ),
        _latency(
            "Time to first token", "vllm:time_to_first_token_seconds", "From a complete request to its first token."
        ),
        _latency("Time between tokens", "vllm:inter_token_latency_seconds", "As the client sees it."),
        _latency("Whole request", "vllm:e2e_request_latency_seconds", "From submission to the last token."),
        Panel(
            "How requests end",
            "stop, length, abort: the client left; error.",
            (Target(_rate("vllm:request_success_total", "finished_reason"), "{{finished_reason}}"),),
            "reqps",
        ),
        Panel(
            "Refused or cut", "By reason.", (Target(_rate("tokenfleet:shed_total", "reason"), "{{reason}}"),), "reqps"
        ),
        Panel(
            "Streams that failed",
            "Choices that ended with an error, and requests past their deadline.",
            (
                Target(_rate("tokenfleet:stream_failures_total", "reason"), "{{reason}}"),
                Target(_rate("tokenfleet:deadline_exceeded_total"), "deadline exceeded"),
            ),
            "reqps",
        ),
        Panel(
            "Restarts",
            "Deaths answered with a new process, in an hour.",
            (Target(f"sum by (role) (increase(tokenfleet:restarts_total{{{SELECTOR}}}[1h]))", "{{role}}"),),
        ),
        Panel(
            "Streams that outlived their engine",
            "Went on in another engine, in an hour.",
            (Target(f"sum (increase(tokenfleet:streams_resumed_total{{{SELECTOR}}}[1h]))", "resumed"),),
        ),
        Panel(
            "Processors",
            "Cores in use, by role.",
            (Target(_rate("tokenfleet:process_cpu_seconds_total", "role"), "{{role}}"),),
        ),
        Panel(
            "Memory",
            "Resident, by role; what processes share counts in each.",
            (Target(_gauge("tokenfleet:process_resident_memory_bytes", "role"), "{{role}}"),),
            "bytes",
        ),
        Panel(
            "Request bodies",
            "Declared bytes per second.",
            (
                Target(_rate("http_request_size_bytes_sum"), "in"),
                Target(_rate("http_response_size_bytes_sum"), "out, without streams"),
            ),
            "bytes",
        ),
        Panel(
            "Heartbeats",
            "Age of the oldest, by role.",
            (Target(_gauge("tokenfleet:heartbeat_age_seconds", "role", "max"), "{{role}}"),),
            "s",
        ),
    ),
)

WORKERS = Dashboard(
    "tokenfleet-workers",
    "tokenfleet / workers",
    "One worker per core: how even the load is, and whether an event loop falls behind.",
    (
        Panel(
            "Requests",
            "Without probes.",
            (Target(_rate("tokenfleet:worker_requests_total", "worker"), "{{worker}}"),),
            "reqps",
        ),
        Panel(
            "Tokens handed out",
            "",
            (Target(_rate("tokenfleet:worker_generation_tokens_total", "worker"), "{{worker}}"),),
        ),
        Panel(
            "Processor",
            "Share of one core.",
            (
                Target(
                    f'sum by (index) (rate(tokenfleet:process_cpu_seconds_total{{{SELECTOR},role="worker"}}[{WINDOW}]))'
                    f" and {LIVING_WORKERS}",
                    "{{index}}",
                ),
            ),
            "percentunit",
        ),
        Panel(
            "Event loop lag",
            "99th percentile of how late a timer of the loop fires.",
            (
                Target(
                    "histogram_quantile(0.99, sum by (le, worker) "
                    f"(rate(tokenfleet:event_loop_lag_seconds_bucket{{{SELECTOR}}}[{WINDOW}])))",
                    "{{worker}}",
                ),
            ),
            "s",
        ),
        Panel("Open connections", "", (Target(_gauge("tokenfleet:open_connections", "worker"), "{{worker}}"),)),
        Panel(
            "Open streams", "Choices in flight.", (Target(_gauge("tokenfleet:open_streams", "worker"), "{{worker}}"),)
        ),
        Panel(
            "Oldest stream",
            "One that grows without end is stuck.",
            (Target(_gauge("tokenfleet:oldest_stream_age_seconds", "worker", "max"), "{{worker}}"),),
            "s",
        ),
        Panel(
            "Fill of the token rings",
            "A worker that does not read lets its ring fill up.",
            (Target(_gauge("tokenfleet:ring_occupancy", "worker", "max"), "{{worker}}"),),
            "percentunit",
            max_value=1,
        ),
        _latency("Tokenizing", "tokenfleet:tokenize_seconds", "Template and tokenizer, per prompt."),
        Panel(
            "Tokenizer cache",
            "Share of text segments that were found.",
            (
                Target(
                    f"{_rate('tokenfleet:tokenizer_cache_hits_total', 'worker')} / "
                    f"({_rate('tokenfleet:tokenizer_cache_hits_total', 'worker')} + "
                    f"{_rate('tokenfleet:tokenizer_cache_misses_total', 'worker')})",
                    "{{worker}}",
                ),
            ),
            "percentunit",
            max_value=1,
        ),
        Panel(
            "Size of the tokenizer cache",
            "",
            (Target(_gauge("tokenfleet:tokenizer_cache_bytes", "worker"), "{{worker}}"),),
            "bytes",
        ),
        Panel(
            "Memory",
            "Resident.",
            (
                Target(
                    LIVING_WORKERS,
                    "{{index}}",
                ),
            ),
            "bytes",
        ),
    ),
)

ENGINE = Dashboard(
    "tokenfleet-engine",
    "tokenfleet / engine",
    "Steps, batches, KV blocks, the prefix cache and the queues in front of them.",
    (
        Panel(
            "Steps",
            "Per second.",
            (Target(_rate("tokenfleet:engine_step_seconds_count", "engine"), "{{engine}}"),),
            "ops",
        ),
        _latency("Duration of a step", "tokenfleet:engine_step_seconds", "Forward pass and everything around it."),
        Panel(
            "Tokens per step",
            "Prompts and decodes.",
            (
                Target(
                    f"{_rate('vllm:iteration_tokens_total_sum')} / {_rate('vllm:iteration_tokens_total_count')}", "mean"
                ),
            ),
        ),
        Panel("Running", "The batch.", (Target(_gauge("tokenfleet:engine_requests_running", "engine"), "{{engine}}"),)),
        Panel(
            "Waiting",
            "For a place in it.",
            (Target(_gauge("tokenfleet:engine_requests_waiting", "engine"), "{{engine}}"),),
        ),
        Panel(
            "KV blocks in use",
            "",
            (Target(_gauge("tokenfleet:engine_kv_usage", "engine", "max"), "{{engine}}"),),
            "percentunit",
            max_value=1,
        ),
        Panel(
            "Prefix cache",
            "Share of prompt tokens that were found.",
            (Target(f"{_rate('vllm:prefix_cache_hits_total')} / {_rate('vllm:prefix_cache_queries_total')}", "hits"),),
            "percentunit",
            max_value=1,
        ),
        Panel(
            "Preemptions",
            "Requests that gave their blocks back.",
            (Target(_rate("vllm:num_preemptions_total"), "preemptions"),),
            "ops",
        ),
        Panel(
            "Full rings",
            "Records that had to wait for their worker to read.",
            (Target(_rate("tokenfleet:ring_full_waits_total", "engine"), "{{engine}}"),),
            "ops",
        ),
        _latency("Queue", "vllm:request_queue_time_seconds", "Received to first scheduled."),
        _latency("Prefill", "vllm:request_prefill_time_seconds", "First scheduled to first token."),
        _latency("Decode", "vllm:request_decode_time_seconds", "First to last token."),
        Panel(
            "Broker",
            "Placed and not ended; of these not started.",
            (
                Target(_gauge("tokenfleet:broker_requests_in_flight"), "in flight"),
                Target(_gauge("tokenfleet:broker_queue_depth"), "waiting"),
            ),
        ),
        Panel("Prompt tokens that wait", "", (Target(_gauge("tokenfleet:broker_queue_tokens"), "tokens"),)),
        Panel(
            "Length of prompts and answers",
            "Median tokens.",
            (
                Target(
                    "histogram_quantile(0.5, sum by (le) "
                    f"(rate(vllm:request_prompt_tokens_bucket{{{SELECTOR}}}[{WINDOW}])))",
                    "prompt",
                ),
                Target(
                    "histogram_quantile(0.5, sum by (le) "
                    f"(rate(vllm:request_generation_tokens_bucket{{{SELECTOR}}}[{WINDOW}])))",
                    "answer",
                ),
            ),
        ),
    ),
)


def _objective_panels(objective: Objective) -> tuple[Panel, ...]:
    name, bound = objective.name, f"{objective.bound_s:g} s"
    return (
        _stat(
            f"{name} within {bound}",
            f"1 - ({objective.late_share('5m', SELECTOR, 'job')})",
            f"Share of the last five minutes; the objective is {objective.target:.0%}.",
            "percentunit",
        ),
        Panel(
            f"{name} over {bound}",
            f"Share of observations; {objective.budget:.0%} are allowed.",
            tuple(Target(objective.late_share(window, SELECTOR, "job"), window) for window in ("5m", "1h")),
            "percentunit",
            width=10,
        ),
        Panel(
            f"{name}: burn rate of the budget",
            "1 uses the budget up exactly; 14.4 for an hour uses two days of a month's.",
            tuple(Target(objective.burn_rate(window, SELECTOR, "job"), window) for window in ("5m", "30m", "1h", "6h")),
            width=10,
        ),
    )


OBJECTIVES_BOARD = Dashboard(
    "tokenfleet-slo",
    "tokenfleet / objectives",
    "Latency objectives, how fast their error budgets burn, and what clients were refused.",
    (
        *(panel for objective in OBJECTIVES for panel in _objective_panels(objective)),
        Panel(
            "Server errors",
            "Share of HTTP requests answered with 5xx.",
            (
                Target(
                    f'(sum (rate(http_requests_total{{{SELECTOR},status="5xx"}}[{WINDOW}])) or vector(0)) / '
                    f"{_rate('http_requests_total')}",
                    "5xx",
                ),
            ),
            "percentunit",
            width=12,
        ),
        Panel(
            "Deadlines missed",
            "Requests whose own deadline passed before they were started.",
            (Target(_rate("tokenfleet:deadline_exceeded_total"), "missed"),),
            "reqps",
            width=12,
        ),
    ),
)

DASHBOARDS = (FLEET, WORKERS, ENGINE, OBJECTIVES_BOARD)
