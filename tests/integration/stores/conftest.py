"""Settings whose databases are new ones on the tests' own Postgres and Redis."""

from itertools import count

import pytest

from include.settings import Settings

NUMBERS = count()


@pytest.fixture
def real_settings(postgres_server, redis_server, tmp_path) -> Settings:
    """Of the embedded profile, so that nothing but the stores differs; the databases are not made yet."""
    urls = postgres_server.urls(f"t{next(NUMBERS)}")
    reader = urls["feast_registry_url"].replace("_feast:", "_feast_reader:", 1)
    online = redis_server.url()
    return Settings(home=tmp_path, **urls, feast_reader_url=reader, online_store_url=online, database_admin_url=postgres_server.admin_url)
