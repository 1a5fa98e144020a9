"""The timed engine: one log-structured volume on a flash device, in virtual time."""
