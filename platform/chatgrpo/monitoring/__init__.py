"""How we know. Programs count their own figures with `counter`, `gauge` and `histogram`."""

from chatgrpo.monitoring.meters import counter, gauge, histogram

__all__ = ["counter", "gauge", "histogram"]
