"""What the projects' Feast definitions share: the settings, the offline store, the functions.

Each project declares its entities, views and service in ``OBJECTS`` of its own ``feast.py``.
"""
