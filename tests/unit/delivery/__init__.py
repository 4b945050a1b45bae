"""What happens next to a message."""
