"""The way in: who is calling, and what is taken."""
