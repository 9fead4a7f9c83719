"""`airloop demo`: a year of flights through the running loop, and its results."""
