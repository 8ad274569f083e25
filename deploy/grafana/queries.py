"""Pieces of PromQL that several dashboards share. Pure."""

from typing import Final

#: The chosen services; gauges of rows and of the broker belong to none of them.
CHOSEN: Final = 'job=~"$job",instance=~"$instance"'
RECENT: Final = "[$__rate_interval]"

OUTCOMES: Final = {"completed": "green", "failed": "red", "cancelled": "text", "accepted": "blue"}


def quantile(quantile: float, metric: str, by: str = "", matchers: str = "") -> str:
    """A quantile of a histogram; by -- labels to keep apart, matchers -- further ones, each behind a comma."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({quantile}, sum by ({labels}) (rate({metric}_bucket{{{CHOSEN}{matchers}}}{RECENT})))"


def rate(metric: str, by: str = "", matchers: str = "", window: str = RECENT) -> str:
    """Events per second, over all replicas."""
    grouped = f"sum by ({by})" if by else "sum"
    return f"{grouped} (rate({metric}{{{CHOSEN}{matchers}}}{window}))"


def none(label: str) -> str:
    """A line at 0 called none: a panel that shows only what happened must not look broken when nothing did."""
    return f'label_replace(vector(0), "{label}", "none", "", "")'
