"""What survives a power loss: the log's format, checkpoints, and recovery by rolling forward."""
