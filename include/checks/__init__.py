"""Find faults of a project without running it: `airloop check`.

The check covers its declaration, its Feast objects, and the ingested data.
"""
