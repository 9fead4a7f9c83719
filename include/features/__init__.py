"""Feature computation, training sets, and every call of Feast."""
