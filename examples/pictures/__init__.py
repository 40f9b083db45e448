"""The pictures of docs/gallery.md: what is computed for each, and how it is drawn."""
