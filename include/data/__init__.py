"""From the landing zone to validated, versioned tables; what is bad goes to quarantine."""
