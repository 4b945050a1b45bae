"""Facts to columns and back."""
