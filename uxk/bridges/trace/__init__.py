"""A run as a trace for Perfetto."""
