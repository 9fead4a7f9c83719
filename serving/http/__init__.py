"""HTTP: connections and their limits, routes, request formats, and pages."""
