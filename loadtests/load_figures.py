"""What all simulated users saw, as one report; or the refusal of one: a client that was itself busy measured itself."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from loadtests.report import machine, quantile_of, table
from loadtests.sse_meter import StreamMeter

MAX_CPU_SHARE = 0.7


@dataclass
class LoadFigures:
    """Seconds throughout. Answers that were left on purpose count their first token, and nothing else."""

    ttft_s: list[float] = field(default_factory=list)
    gap_s: list[float] = field(default_factory=list)
    tpot_s: list[float] = field(default_factory=list)
    e2e_s: list[float] = field(default_factory=list)
    num_tokens: int = 0
    num_whole: int = 0
    num_left: int = 0
    num_failed: int = 0

    def on_answer(self, meter: StreamMeter) -> None:
        """Raises ValueError with what is wrong with it; `on_failure` is the caller's to call."""
        if meter.fault is not None:
            raise ValueError(meter.fault)
        self.num_whole += 1
        self._on_first_token(meter)
        self.gap_s += meter.gaps_s
        self.e2e_s.append(meter.e2e_s)
        if meter.tpot_s is not None:
            self.tpot_s.append(meter.tpot_s)

    def on_left(self, meter: StreamMeter) -> None:
        self.num_left += 1
        self._on_first_token(meter)

    def on_failure(self) -> None:
        self.num_failed += 1

    def _on_first_token(self, meter: StreamMeter) -> None:
        self.num_tokens += meter.num_tokens
        if meter.ttft_s is not None:
            self.ttft_s.append(meter.ttft_s)


def refusal_or_none(figures: LoadFigures, cpu_share: float) -> str | None:
    """`cpu_share`: what the load generator used of its one core while it asked."""
    if figures.num_whole + figures.num_left == 0:
        return f"no report: no answer came ({figures.num_failed} failed)"
    if cpu_share > MAX_CPU_SHARE:
        return (
            f"no report: the load generator used {cpu_share:.0%} of its core, more than {MAX_CPU_SHARE:.0%}; "
            "its times are its own. Ask for less, or from more machines"
        )
    return None


def render(title: str, figures: LoadFigures, cpu_share: float, wall_s: float) -> str:
    """Markdown. Only for figures without a refusal. `wall_s` ends with the last answer."""
    rows = [
        ["whole answers, left, failed", f"{figures.num_whole}, {figures.num_left}, {figures.num_failed}"],
        ["tokens per second", f"{figures.num_tokens / wall_s:.0f}"],
        ["TTFT p50 / p99 ms", _p50_p99(figures.ttft_s)],
        ["between two events p50 / p99 ms", _p50_p99(figures.gap_s)],
        ["longest gap ms", _ms(max(figures.gap_s)) if figures.gap_s else "–"],
        ["per token behind the first p50 / p99 ms", _p50_p99(figures.tpot_s)],
        ["whole answer p50 / p99 ms", _p50_p99(figures.e2e_s)],
        ["CPU of the load generator", f"{cpu_share:.0%} of its core"],
    ]
    return f"{title}\n\n{machine()}\n\n{table(['', f'{wall_s:.0f} s'], rows)}"


def _p50_p99(values_s: Sequence[float]) -> str:
    return f"{_ms(quantile_of(values_s, 0.5))} / {_ms(quantile_of(values_s, 0.99))}" if values_s else "–"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f}"
