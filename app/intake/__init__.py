"""The only way in: who is calling, what they may, and taking the message."""
