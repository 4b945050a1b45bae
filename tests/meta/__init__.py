"""The repository keeps its own promises: what is generated is current, what is public is documented."""
