"""The vocabulary: addresses, replies, profiles, schedules, ids, states, hints."""
