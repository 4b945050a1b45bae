"""The whole program, as its users start it."""
