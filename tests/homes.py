"""Reset a test process between homes: it uses several, one after another."""

import sys

from include.settings import get_settings


def forget_home() -> None:
    """Clear the cached settings and Feast's store, and unload the modules with Feast's objects.

    They read the paths of their tables from the environment when they are imported.
    """
    get_settings.cache_clear()
    for name in [
        name
        for name in sys.modules
        if (name.startswith("feature_repo.") and name != "feature_repo.offline_store")
        or (name.startswith("include.projects.") and name.endswith(".feast"))
    ]:
        del sys.modules[name]
    if (store := sys.modules.get("include.features.store")) is not None:
        store.feature_store.cache_clear()
