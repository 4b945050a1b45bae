"""The vocabulary: what a message, a relay, a reply and a failure are.

Pure: no I/O, no clock, and nothing of ours from outside this room. Everything else in the house speaks in
these types.
"""
