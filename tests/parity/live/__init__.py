"""The losses of other systems, run unmodified on inputs of our choice."""
