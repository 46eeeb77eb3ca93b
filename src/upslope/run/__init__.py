"""Runs: the loop, what it writes and what it loads."""
