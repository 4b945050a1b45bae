"""The HTTP doors: wire format ↔ Draft, Receipt and Snapshot, nothing else. HTTP statuses live in edge.py."""
