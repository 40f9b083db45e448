"""Named losses, composed."""
