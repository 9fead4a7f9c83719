"""Models: the registry, its versions and their files, and what a version takes and returns."""
