"""Mails read back for people, and made fit to be shown."""
