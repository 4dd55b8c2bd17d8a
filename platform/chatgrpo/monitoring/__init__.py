"""How we know. Programs count their own figures with `counter`, `gauge` and `histogram`, and trace their own work."""

from chatgrpo.monitoring.dashboard import get_metrics_dashboard
from chatgrpo.monitoring.meters import counter, gauge, histogram
from chatgrpo.monitoring.tracing import monitor_async_function, trace_operation

__all__ = ["counter", "gauge", "get_metrics_dashboard", "histogram", "monitor_async_function", "trace_operation"]
