"""Feast's side of the projects: one module per project, each with its entities, views and service in ``OBJECTS``."""
