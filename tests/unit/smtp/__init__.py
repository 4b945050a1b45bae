"""The pure parts of the SMTP room."""
