"""Environments for the control examples, and adapters for other libraries'."""
