"""A log-structured volume whose garbage collector is a decision site."""
