"""The pure parts of the HTTP doors."""
