"""The emulated block layer: request queues between the clients of a disk and its driver."""
