"""Write Airloop's own keys to the key file.

    python -m serving.house_keys keys.json

Airflow tasks call serving with one key, and Prometheus reads the metrics with the other. Both are
generated with the other secrets and come from the environment. The file stores them as hashes. All
other keys in it are kept (``serving.keys``).
"""

import json
import os
import sys
from pathlib import Path

from serving.keys import Key, Keys, KeysError, Role, digest, read

HOUSE: dict[str, tuple[str, tuple[Role, ...]]] = {
    "AIRLOOP_SERVING_API_KEY": ("airloop", ("predict", "feedback")),
    "SERVING_METRICS_KEY": ("prometheus", ("metrics",)),
}


def put(file: Path, given: dict[str, str]) -> None:
    """Write these keys (variable -> key) to the file. They replace the keys with the same names.

    Raises:
        KeysError: A key is missing, or the file is not usable.
    """
    if missing := [name for name in HOUSE if len(given.get(name, "")) < 12]:
        raise KeysError(
            f"{', '.join(missing)}: not in the environment, or shorter than 12 characters; `airloop init-env` makes"
            " them"
        )
    house = [
        Key(name=name, sha256=digest(given[variable].encode()), roles=roles)
        for variable, (name, roles) in HOUSE.items()
    ]
    others = [key for key in read(file).keys if key.name not in {key.name for key in house}] if file.exists() else []
    content = json.dumps(Keys(keys=(*house, *others)).model_dump(mode="json", exclude_none=True), indent=1) + "\n"
    if file.exists() and file.read_text() == content:
        return
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    draft.touch(mode=0o600)
    draft.write_text(content)
    draft.replace(file)


def main(arguments: list[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    if len(given) != 1:
        print("usage: python -m serving.house_keys FILE", file=sys.stderr)
        return 2
    try:
        put(Path(given[0]), dict(os.environ))
    except KeysError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
