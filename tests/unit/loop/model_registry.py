"""A model of MLflow's registry in memory with the calls of ``include.registry.versions``.

A test compares it with the real registry.
"""

import re
from types import SimpleNamespace
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST


class ModelRegistry:
    """One registered model. ``wrote`` is called after each completed write."""

    def __init__(self, wrote: Any = lambda: None) -> None:
        self.wrote = wrote
        self.tags: dict[str, str] = {}
        self.aliases: dict[str, str] = {}
        self.versions: dict[str, dict[str, str]] = {}

    def create_registered_model(self, name: str, **_: Any) -> None:
        self.wrote()

    def get_registered_model(self, name: str) -> Any:
        return SimpleNamespace(aliases=dict(self.aliases), tags=dict(self.tags))

    def create_model_version(self, name: str, source: str, *, tags: dict[str, str]) -> Any:
        version = str(len(self.versions) + 1)
        self.versions[version] = dict(tags)
        self.wrote()
        return self.get_model_version(name, version)

    def get_model_version(self, name: str, version: str) -> Any:
        if version not in self.versions:
            raise MlflowException(f"Model Version (name={name}, version={version}) not found", RESOURCE_DOES_NOT_EXIST)
        return SimpleNamespace(version=version, tags=dict(self.versions[version]))

    def search_model_versions(self, query: str) -> list[Any]:
        (wanted,) = re.findall(r"tags\.request = '(.*)'", query)
        return [
            self.get_model_version("", version)
            for version, tags in self.versions.items()
            if tags.get("request") == wanted
        ]

    def set_registered_model_alias(self, name: str, alias: str, version: str) -> None:
        self.get_model_version(name, version)
        self.aliases[alias] = version
        self.wrote()

    def delete_registered_model_alias(self, name: str, alias: str) -> None:
        self.aliases.pop(alias, None)
        self.wrote()

    def set_registered_model_tag(self, name: str, key: str, value: str) -> None:
        self.tags[key] = value
        self.wrote()

    def set_model_version_tag(self, name: str, version: str, key: str, value: str) -> None:
        self.get_model_version(name, version)
        self.versions[version][key] = value
        self.wrote()
