"""Figures of a running kernel in the words of Prometheus and OpenMetrics."""
