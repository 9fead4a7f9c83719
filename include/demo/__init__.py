"""`airloop demo`: a year of flights through the running loop, and what came of it."""
