"""What the dashboards ask for that vLLM 0.33.0 publishes (examples/observability in vllm-project/vllm): every query of its
three Grafana files, by the file's name, each query once."""

from collections.abc import Iterator

QUANTILES = (0.5, 0.9, 0.95, 0.99)


def queries() -> dict[str, frozenset[str]]:
    return {
        "prometheus_grafana/grafana.json": frozenset(_of_one_model()),
        "dashboards/grafana/query_statistics.json": frozenset(_of_chosen_models()),
        "dashboards/grafana/performance_statistics.json": frozenset(_of_everything()),
    }


def _of_one_model() -> Iterator[str]:
    chosen, window = '{model_name="$model_name"}', "[$__rate_interval]"
    for name in (
        "e2e_request_latency_seconds", "inter_token_latency_seconds", "request_time_per_output_token_seconds",
        "time_to_first_token_seconds",
    ):  # fmt: skip
        rate = f"sum by(le) (rate(vllm:{name}_bucket{chosen}{window}))"
        yield from (f"histogram_quantile({quantile}, {rate})" for quantile in QUANTILES)
        yield f"rate(vllm:{name}_sum{chosen}{window}) / rate(vllm:{name}_count{chosen}{window})"
    for name in ("prompt_tokens", "generation_tokens"):
        yield f"rate(vllm:{name}_total{chosen}{window})"
        yield f"sum by(le) (increase(vllm:request_{name}_bucket{chosen}{window}))"
    for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"):
        yield f"vllm:{name}{chosen}"
    yield f"sum by(finished_reason) (increase(vllm:request_success_total{chosen}{window}))"
    for name in ("queue_time_seconds", "prefill_time_seconds", "decode_time_seconds", "max_num_generation_tokens"):
        yield f"rate(vllm:request_{name}_sum{chosen}{window})"


def _of_chosen_models() -> Iterator[str]:
    ended, prompts, tokens = (
        f'rate(vllm:{name}_total{{model_name=~"$Deployment_id"}}[$__rate_interval])'
        for name in ("request_success", "prompt_tokens", "generation_tokens")
    )
    for rate in (ended, prompts, tokens):
        yield f"sum({rate})"
        yield f"sum by (model_name) ({rate})"
    yield f"sum({prompts}) / sum({ended})"
    for name in ("e2e_request_latency_seconds", "request_prompt_tokens"):
        rate = f'rate(vllm:{name}_bucket{{model_name=~"$Deployment_id"}}[$__rate_interval])'
        for quantile in ("0.50", "0.90", "0.99"):
            yield f"histogram_quantile({quantile}, sum by(le, model_name) ({rate}))"
    yield f"sum by (le, model_name) ({rate})"


def _of_everything() -> Iterator[str]:
    for name in ("e2e_request_latency_seconds", "time_to_first_token_seconds", "inter_token_latency_seconds"):
        histogram = f"vllm:{name}"
        yield f"rate({histogram}_sum[$__interval]) / rate({histogram}_count[$__interval])"
        yield f"(sum(increase({histogram}_sum[$__range])) / sum(increase({histogram}_count[$__range])))"
        for quantile in ("0.50", "0.90", "0.99"):
            yield f"histogram_quantile({quantile}, sum by(le) (rate({histogram}_bucket[$__range])))"
    for quantile in ("0.50", "0.90", "0.99"):
        yield f"histogram_quantile({quantile}, sum by(le) (rate({histogram}_bucket[$__interval])))"
    for name in ("generation_tokens_total", "prompt_tokens_total", "iteration_tokens_total_count"):
        yield f"rate(vllm:{name}[$__interval])"
