"""The deadlock laboratory: writers, memory, a volume and an agent that waits for what waits for it."""
