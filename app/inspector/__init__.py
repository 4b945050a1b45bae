"""The web page: what was sent, for people to look at. Reads the store, changes nothing."""
