"""A process of tests lives in one home after another. What it remembers of the one before must go."""

import sys

from include.settings import get_settings


def forget_home() -> None:
    """Forget the settings, Feast's store, and the modules of feature_repo, which take the place of their tables from the environment as they are imported."""
    get_settings.cache_clear()
    for name in [name for name in sys.modules if name.startswith("feature_repo.") and name != "feature_repo.offline_store"]:
        del sys.modules[name]
    if (store := sys.modules.get("include.features.store")) is not None:
        store.feature_store.cache_clear()
