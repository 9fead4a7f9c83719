"""New projects from templates: a folder of include/projects and a module of feature_repo that work at once."""
