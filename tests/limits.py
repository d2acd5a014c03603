"""How long a test waits for a process."""

HANG = 1200
"""Seconds, against a process that hangs; no clock: on a busy machine starting one takes minutes."""
