"""Ways in and out of a running kernel."""
