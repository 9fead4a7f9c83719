"""From the landing zone to validated, versioned tables. Bad rows are quarantined."""
