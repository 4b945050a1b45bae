"""From a draft to the bytes that every attempt sends. Pure."""
