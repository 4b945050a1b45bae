"""The schema grows step by step."""
