"""The store keeps its promises, whatever database is behind it."""
