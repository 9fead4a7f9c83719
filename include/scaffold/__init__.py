"""New projects from templates: one folder each.

A new project works immediately.
"""
