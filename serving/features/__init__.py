"""Feature look-ups in Feast's online stores."""
