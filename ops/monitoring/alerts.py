"""The alerts, each with the series that make it fire and those that do not: what promtool checks is written beside it.

One source, two files: plain rules for a Prometheus of one's own, a PrometheusRule for the operator. Every alert has a page in
ops/runbooks/. Texts hold no measured values, so that one incident is one notification.
"""

from collections.abc import Iterator
from typing import Any, Literal

from msgspec import Struct

from ops.monitoring.objectives import ITL, TTFT, Objective

SERVICE = "job, namespace"  # what clients see: all fleets of a job
FLEET = "job, namespace, pod, instance"  # one of them; outside a cluster there is neither namespace nor pod
THAT_SHOULD_SERVE = (
    f"and on ({FLEET}) max by ({FLEET}) (tokenfleet:has_been_ready) > 0 "
    f"unless on ({FLEET}) max by ({FLEET}) (tokenfleet:draining_seconds) > 0"
)
"""Of the fleets: not one that loads its model for the first time, nor one that was told to stop."""
OF_TEST = {"job": "tokenfleet", "namespace": "chat", "pod": "chat-0", "instance": "a:8001"}
LOADING, DRAINING = {"pod": "chat-1", "instance": "b:8001"}, {"pod": "chat-2", "instance": "c:8001"}


class Series(Struct, frozen=True):
    """`values` in promtool's notation, one sample each `interval` of the alert's."""

    name: str
    values: str
    labels: dict[str, str] = {}

    @property
    def text(self) -> str:
        pairs = ",".join(f'{key}="{value}"' for key, value in {**OF_TEST, **self.labels}.items())
        return f"{self.name}{{{pairs}}}"


class Alert(Struct, frozen=True, kw_only=True):
    name: str
    expr: str
    for_: str
    severity: Literal["page", "ticket"]
    summary: str
    description: str
    runbook: str
    fires: tuple[Series, ...]  # firing after `at`
    quiet: tuple[Series, ...]
    at: str = "30m"
    interval: str = "1m"  # of the samples
    labels: dict[str, str] = {}  # further ones that the firing alert has
    keeps: str = FLEET  # labels of the series that the alert has

    def rule(self) -> dict[str, Any]:
        return {
            "alert": self.name,
            "expr": self.expr,
            "for": self.for_,
            "labels": {"severity": self.severity},
            "annotations": self.annotations,
        }

    @property
    def annotations(self) -> dict[str, str]:
        return {
            "summary": self.summary,
            "description": self.description,
            "runbook_url": f"ops/runbooks/{self.runbook}.md",
        }

    def tests(self) -> Iterator[dict[str, Any]]:
        """Two of promtool's: one in which it fires, with every label and text, one in which it does not."""
        kept = {name: text for name, text in OF_TEST.items() if name in self.keeps.split(", ")}
        firing = {
            "exp_labels": {**kept, **self.labels, "severity": self.severity},
            "exp_annotations": self.annotations,
        }
        for series, expected in ((self.fires, [firing]), (self.quiet, [])):
            yield {
                "interval": self.interval,
                "input_series": [{"series": one.text, "values": one.values} for one in series],
                "alert_rule_test": [{"eval_time": self.at, "alertname": self.name, "exp_alerts": expected}],
            }


def _burn(objective: Objective, severity: Literal["page", "ticket"]) -> Alert:
    """Two windows and a factor each (Google's SRE workbook, chapter 5): the long one says that it matters, the short one
    that it still goes on."""
    factor, long, short = (14.4, "1h", "5m") if severity == "page" else (6, "6h", "30m")
    rates = [f"{objective.burn_rate(window, '', SERVICE)} > {factor}" for window in (long, short)]
    speed = "Fast" if severity == "page" else "Slow"
    late = {"le": str(float(objective.bound_s)), "model_name": "m"}
    return Alert(
        name=f"Tokenfleet{objective.name}BudgetBurns{speed}",
        expr=f"{rates[0]} and {rates[1]}",
        for_="2m" if severity == "page" else "15m",
        severity=severity,
        summary=f"{objective.name} is over {objective.bound_s:g} s too often",
        description=f"More than {factor * objective.budget:.0%} of the observations of the last {long} and of the last "
        f"{short} were over {objective.bound_s:g} s; {objective.budget:.0%} are allowed.",
        runbook=f"{objective.name.lower()}-budget-burns",
        fires=(
            Series(f"{objective.histogram}_bucket", "0+70x480", late),
            Series(f"{objective.histogram}_count", "0+100x480", {"model_name": "m"}),
        ),
        quiet=(
            Series(f"{objective.histogram}_bucket", "0+999x480", late),
            Series(f"{objective.histogram}_count", "0+1000x480", {"model_name": "m"}),
        ),
        at="90m" if severity == "page" else "7h",
        keeps=SERVICE,
    )


ALERTS = (
    _burn(TTFT, "page"),
    _burn(TTFT, "ticket"),
    _burn(ITL, "page"),
    _burn(ITL, "ticket"),
    Alert(
        name="TokenfleetQueueGrows",
        expr=f"min by ({FLEET}) (min_over_time(vllm:num_requests_waiting[5m])) > 0 "
        f"and sum by ({FLEET}) (deriv(vllm:num_requests_waiting[10m])) > 0",
        for_="5m",
        severity="ticket",
        summary="Requests come in faster than they are served",
        description="For ten minutes there were always requests waiting for a place in the batch, and ever more of them.",
        runbook="queue-grows",
        fires=(Series("vllm:num_requests_waiting", "0+5x60"),),
        quiet=(Series("vllm:num_requests_waiting", "5 0 9 0 3 0 8 0 2 0 5 0 9 0 3 0 8 0 2 0 5 0 9 0 3 0 8 0 2 0 1"),),
    ),
    Alert(
        name="TokenfleetEngineStalled",
        expr=f"sum by ({FLEET}, engine) (min_over_time(tokenfleet:engine_requests_running[1m])) > 0 "
        f"and sum by ({FLEET}, engine) (rate(tokenfleet:engine_step_seconds_count[1m])) == 0",
        for_="0m",
        severity="page",
        summary="An engine has requests and makes no steps",
        description="For a minute its batch was never empty, and it has finished no step. The watchdog replaces it after "
        "engine_step_timeout_s, two minutes by default: the alert then ends by itself.",
        runbook="engine-stalled",
        fires=(  # from 1m on it hangs; at 3m the watchdog kills it
            Series("tokenfleet:engine_requests_running", "4x11 0x30", {"engine": "1"}),
            Series("tokenfleet:engine_step_seconds_count", "0+100x4 400x37", {"engine": "1"}),
        ),
        quiet=(  # one works, one has nothing to do, one has just got something to do
            Series("tokenfleet:engine_requests_running", "4x40", {"engine": "0"}),
            Series("tokenfleet:engine_step_seconds_count", "0+10x40", {"engine": "0"}),
            Series("tokenfleet:engine_requests_running", "0x40", {"engine": "1"}),
            Series("tokenfleet:engine_step_seconds_count", "1000x40", {"engine": "1"}),
            Series("tokenfleet:engine_requests_running", "0x8 1x31", {"engine": "2"}),
            Series("tokenfleet:engine_step_seconds_count", "1000x40", {"engine": "2"}),
        ),
        at="2m15s",
        interval="15s",
        labels={"engine": "1"},
    ),
    Alert(
        name="TokenfleetCrashLoop",
        expr=f"sum by ({FLEET}, role) (increase(tokenfleet:restarts_total[10m])) > 3",
        for_="0m",
        severity="page",
        summary="Processes of one role die again and again",
        description="More than three deaths of the role in ten minutes. The fleet answers each with a new process, ever later.",
        runbook="crash-loop",
        fires=(Series("tokenfleet:restarts_total", "0+1x60", {"role": "worker"}),),
        quiet=(Series("tokenfleet:restarts_total", "0x20 1x40", {"role": "worker"}),),
        labels={"role": "worker"},
    ),
    Alert(
        name="TokenfleetRoleNotReady",
        expr=f"sum by ({FLEET}, role) (tokenfleet:processes_ready) == 0 " + THAT_SHOULD_SERVE,
        for_="2m",
        severity="page",
        summary="No process of a role is ready",
        description="The fleet cannot serve without it: it was ready once, and /readyz has been false for two minutes.",
        runbook="role-not-ready",
        fires=(
            Series("tokenfleet:processes_ready", "1x10 0x60", {"role": "engine"}),
            Series("tokenfleet:has_been_ready", "1x60"),
            Series("tokenfleet:draining_seconds", "0x60"),
        ),
        quiet=(
            Series("tokenfleet:processes_ready", "0x1 1x60", {"role": "engine"}),
            Series("tokenfleet:has_been_ready", "1x60"),
            Series("tokenfleet:draining_seconds", "0x60"),
            Series("tokenfleet:processes_ready", "0x60", {"role": "engine", **LOADING}),
            Series("tokenfleet:has_been_ready", "0x60", LOADING),
            Series("tokenfleet:draining_seconds", "0x60", LOADING),
            Series("tokenfleet:processes_ready", "2x25 0x40", {"role": "worker", **DRAINING}),
            Series("tokenfleet:has_been_ready", "1x60", DRAINING),
            Series("tokenfleet:draining_seconds", "0x25 0+60x40", DRAINING),
        ),
        labels={"role": "engine"},
    ),
    Alert(
        name="TokenfleetProcessMissing",
        expr=f"sum by ({FLEET}, role) (tokenfleet:processes) - sum by ({FLEET}, role) (tokenfleet:processes_ready) > 0 "
        + THAT_SHOULD_SERVE,
        for_="15m",
        severity="ticket",
        summary="Processes of a role stay away",
        description="The others of the role serve for them. An engine that has given up is not started again.",
        runbook="role-not-ready",
        fires=(
            Series("tokenfleet:processes", "2x60", {"role": "engine"}),
            Series("tokenfleet:processes_ready", "2x5 1x60", {"role": "engine"}),
            Series("tokenfleet:has_been_ready", "1x60"),
            Series("tokenfleet:draining_seconds", "0x60"),
        ),
        quiet=(
            Series("tokenfleet:processes", "2x60", {"role": "engine"}),
            Series("tokenfleet:processes_ready", "2x20 1x60", {"role": "engine"}),  # since ten minutes
            Series("tokenfleet:has_been_ready", "1x60"),
            Series("tokenfleet:draining_seconds", "0x60"),
            Series("tokenfleet:processes", "2x60", {"role": "worker", **DRAINING}),
            Series("tokenfleet:processes_ready", "2x5 1x60", {"role": "worker", **DRAINING}),
            Series("tokenfleet:has_been_ready", "1x60", DRAINING),
            Series("tokenfleet:draining_seconds", "0x5 60+60x60", DRAINING),
        ),
        labels={"role": "engine"},
    ),
    Alert(
        name="TokenfleetRingFull",
        expr=f"max by ({FLEET}, worker) (tokenfleet:ring_occupancy) > 0.8",
        for_="1m",
        severity="ticket",
        summary="A worker does not read its token ring",
        description="The ring of this worker was over four fifths full for a minute. Past a bound the engine cuts its streams.",
        runbook="ring-full",
        fires=(Series("tokenfleet:ring_occupancy", "0.95x60", {"worker": "3"}),),
        quiet=(Series("tokenfleet:ring_occupancy", "0.95 0.1x60", {"worker": "3"}),),
        labels={"worker": "3"},
    ),
    Alert(
        name="TokenfleetKVPressure",
        expr=f"max by ({FLEET}) (vllm:kv_cache_usage_perc) > 0.95 "
        f"and sum by ({FLEET}) (rate(vllm:num_preemptions_total[5m])) > 0",
        for_="5m",
        severity="ticket",
        summary="The KV cache is full and requests are computed again",
        description="Over 95 % of the blocks are in use and running requests give theirs back, which costs their prefill.",
        runbook="kv-pressure",
        fires=(
            Series("vllm:kv_cache_usage_perc", "0.99x60"),
            Series("vllm:num_preemptions_total", "0+3x60"),
        ),
        quiet=(
            Series("vllm:kv_cache_usage_perc", "0.99x60"),
            Series("vllm:num_preemptions_total", "7x60"),
        ),
    ),
    Alert(
        name="TokenfleetSheds",
        expr=f"sum by ({FLEET}) (rate(tokenfleet:shed_total[5m])) "
        f"/ sum by ({FLEET}) (rate(http_requests_total[5m])) > 0.05",
        for_="10m",
        severity="ticket",
        summary="More than one request in twenty is refused or cut",
        description="For ten minutes; tokenfleet:shed_total has the reasons.",
        runbook="sheds",
        fires=(
            Series("tokenfleet:shed_total", "0+10x60", {"reason": "max_num_queued_reqs"}),
            Series("http_requests_total", "0+100x60", {"status": "2xx"}),
        ),
        quiet=(
            Series("tokenfleet:shed_total", "0+1x60", {"reason": "max_num_queued_reqs"}),
            Series("http_requests_total", "0+100x60", {"status": "2xx"}),
        ),
    ),
    Alert(
        name="TokenfleetStreamStuck",
        expr=f"max by ({FLEET}, worker) (tokenfleet:oldest_stream_age_seconds) > 1800",
        for_="5m",
        severity="ticket",
        summary="A stream has been open for half an hour",
        description="No answer of this model should take so long: its client may have gone, or its engine forgot it.",
        runbook="stream-stuck",
        fires=(Series("tokenfleet:oldest_stream_age_seconds", "0+60x60", {"worker": "0"}),),
        quiet=(Series("tokenfleet:oldest_stream_age_seconds", "0+20x60", {"worker": "0"}),),
        labels={"worker": "0"},
        at="50m",
    ),
    Alert(
        name="TokenfleetScrapeMissing",
        expr="absent(tokenfleet:processes)",
        for_="2m",
        severity="page",
        summary="No fleet is scraped",
        description="Prometheus has no metrics of any fleet: none runs, or the scrape configuration does not find it.",
        runbook="scrape-missing",
        fires=(Series("up", "0x60"),),
        quiet=(Series("tokenfleet:processes", "2x60", {"role": "worker"}),),
        keeps="",
    ),
    Alert(
        name="TokenfleetScrapeFails",
        expr=f"max by ({FLEET}) (up) == 0 and on ({FLEET}) count by ({FLEET}) (last_over_time(tokenfleet:processes[1h]))",
        for_="2m",
        severity="page",
        summary="A fleet that was scraped does not answer",
        description="Its target is still there, and for two minutes no scrape of it succeeded: no other alert can see it.",
        runbook="scrape-missing",
        fires=(
            Series("up", "1x10 0x60"),
            Series("tokenfleet:processes", "2x10 _x60", {"role": "worker"}),
        ),
        quiet=(
            Series("up", "1x60"),
            Series("tokenfleet:processes", "2x60", {"role": "worker"}),
            Series("up", "0x60", {"job": "of something else"}),
        ),
    ),
    Alert(
        name="TokenfleetDrainStuck",
        expr=f"max by ({FLEET}) (tokenfleet:draining_seconds) > max by ({FLEET}) (tokenfleet:drain_limit_seconds)",
        for_="0m",
        severity="ticket",
        summary="A fleet that was told to stop has not",
        description="It has been draining for longer than its pre_stop_s and drain_timeout_s allow. Kubernetes will kill it.",
        runbook="drain-stuck",
        fires=(
            Series("tokenfleet:draining_seconds", "0x25 0+60x60"),
            Series("tokenfleet:drain_limit_seconds", "135x60"),
        ),
        quiet=(
            Series("tokenfleet:draining_seconds", "0x20 0+60x60"),
            Series("tokenfleet:drain_limit_seconds", "615x60"),
        ),
    ),
)
