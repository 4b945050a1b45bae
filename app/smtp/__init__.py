"""The client's side of SMTP: sessions to relays, transactions on them, and what their replies mean.

The only room that knows aiosmtplib, which connects, greets, upgrades and authenticates. From the first MAIL on
only our own `Wire` talks: replies are counted exactly, and whether the content was let go is always known.
"""
