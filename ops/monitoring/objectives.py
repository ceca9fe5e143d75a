"""What the fleet promises, in numbers that dashboards and alerts share. Bounds are bucket bounds of vLLM's histograms."""

from msgspec import Struct


class Objective(Struct, frozen=True):
    """`target` of the observations of `histogram` are at most `bound_s`."""

    name: str
    histogram: str
    bound_s: float
    target: float

    @property
    def budget(self) -> float:
        return round(1 - self.target, 6)

    def late_share(self, window: str, selector: str, by: str) -> str:
        """PromQL: the share of observations over the bound, 0 to 1, within the window."""
        good = f"sum by ({by}) (rate({self.histogram}_bucket{{{_with_le(selector, self.bound_s)}}}[{window}]))"
        every = f"sum by ({by}) (rate({self.histogram}_count{_braced(selector)}[{window}]))"
        return f"1 - {good} / {every}"

    def burn_rate(self, window: str, selector: str, by: str) -> str:
        """PromQL: how many times faster than allowed the error budget is used up."""
        return f"({self.late_share(window, selector, by)}) / {self.budget}"


def _with_le(selector: str, bound_s: float) -> str:
    return ",".join(part for part in (selector, f'le="{float(bound_s)}"') if part)


def _braced(selector: str) -> str:
    return f"{{{selector}}}" if selector else ""


TTFT = Objective("TTFT", "vllm:time_to_first_token_seconds", bound_s=1.0, target=0.99)
ITL = Objective("ITL", "vllm:inter_token_latency_seconds", bound_s=0.1, target=0.99)
OBJECTIVES = (TTFT, ITL)
