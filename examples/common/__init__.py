"""What the examples share: folders of runs, and checkpoints in them."""
