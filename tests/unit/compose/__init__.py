"""Drafts become bytes that every parser reads alike."""
