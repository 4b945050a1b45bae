"""HTTP/1.1 on a socket (RFC 9112), in front of the ASGI application: framing, bounds, deadlines. Knows no messages."""
