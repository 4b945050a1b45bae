"""Hypothesis for the unit tests: the same examples every time, so that what is red is red for everybody.

To look further: `pytest tests/unit --hypothesis-profile=search`.
"""

from hypothesis import settings

settings.register_profile("unit", derandomize=True, deadline=None, max_examples=100, database=None)
settings.register_profile("search", deadline=None, max_examples=3000, database=None)
if settings.get_current_profile_name() != "search":
    settings.load_profile("unit")
