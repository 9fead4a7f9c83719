"""Access: callers and their keys, rate limits, and the access log."""
