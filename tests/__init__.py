"""Everything that proves the service."""
