"""SMTP servers of ours: the only room that knows aiosmtpd."""
