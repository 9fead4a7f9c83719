"""Load a version: look it up, download it, check its files, test it in a child process.

The work runs in background threads.
"""

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from serving import metrics
from serving.models.bundle import Bundle
from serving.models.checker import CheckError, Checkers
from serving.models.http_deadline import Deadline
from serving.models.loaded_model import LoadedModel
from serving.models.mlflow_registry import download, registered_version
from serving.models.model_cache import CachedVersion, ModelCache
from serving.models.model_state import ModelState, RegisteredVersion
from serving.models.rollout import CHAMPION
from serving.models.untrusted import line
from serving.models.version_files import BundleError, FileLimits, Files, hashes_of, read_version, select_files

# Failed downloads before they are reported as an error, because the failure may be temporary.
QUIET_TRIES = 3
# Tests without a result before the version is refused, because the machine may have been busy.
MOST_CHECKS = 3
LONGEST_PAUSE = 60.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """The result of a job: the model and its registered version, or None if that is unknown."""

    model: ModelState
    wanted: RegisteredVersion | None = None


class Loader:
    """Load versions.

    Args:
        fetch_seconds: Deadline for the download of one version.
        cancelled: Downloads end when this event is set.
    """

    def __init__(
        self, cache: ModelCache, checkers: Checkers, uri: str, *, threads: int, limits: FileLimits, fetch_seconds: float, poll_seconds: float,  # noqa: E501
        cancelled: threading.Event,
    ) -> None:  # fmt: skip
        self.cache, self.checkers, self.uri, self.threads, self.limits = cache, checkers, uri, threads, limits
        self.fetch_seconds, self.poll_seconds, self.cancelled = fetch_seconds, poll_seconds, cancelled
        # Digests of the versions without hashes that this process has downloaded.
        self._downloaded: dict[Path, Mapping[str, str]] = {}

    def follow(
        self, client: Any, model: ModelState, version: str, known: RegisteredVersion | None, arm: str
    ) -> Outcome:
        """Load a version, so that it answers.

        Args:
            known: The registered version, if it was already looked up.
            arm: The arm that the version serves.
        """
        try:
            model_version = known or registered_version(client, model.name, version)
        except Exception as error:  # An error of the connection, the registry or the entry.
            return Outcome(
                self._again(model, f"version {version} cannot be looked up: {line(error)}", report_first=True)
            )
        if model_version != model.wanted:
            model = replace(
                model,
                state="ready" if model.served else "loading",
                error=None,
                wanted=model_version,
                tries=0,
                next_try=0.0,
            )
        answers = _answers(model, model_version)
        if (answers and model.verified) or model.state == "refused":
            return Outcome(model, model_version)
        return Outcome(self._try(client, model, model_version, arm), model_version)

    def recover(self, client: Any, model: ModelState, cached_version: CachedVersion) -> Outcome:
        """Load the cached version, although no alias points to it.

        Its files are compared with the registry if the version still exists there, else with its
        own hashes.
        """
        try:
            model_version = registered_version(client, cached_version.name, cached_version.version)
        except Exception as error:
            log.warning(
                "model %s: version %s is not in the registry any more: %s",
                cached_version.name,
                cached_version.version,
                line(error),
            )
            return self.restore(model, cached_version)
        # The version number belongs to a version of another registry.
        if model_version.source != cached_version.source:
            return Outcome(model)
        return self.follow(client, model, cached_version.version, model_version, CHAMPION)

    def restore(self, model: ModelState, cached_version: CachedVersion) -> Outcome:
        """Load the cached version while the registry is unavailable."""
        try:
            read = self.cache.read(
                cached_version.name,
                cached_version.version,
                cached_version.source,
                lambda folder: read_version(folder, hashes_of(cached_version.hashes), self.limits),
            )
            if read is None:
                return Outcome(model)
            bundle = self._load(cached_version.name, *read, cached_version.hashes)
        except Exception as error:
            log.warning(
                "model %s version %s of the cache cannot be used: %s",
                cached_version.name,
                cached_version.version,
                line(error),
            )
            return Outcome(model)
        log.info("model %s: version %s answers, from the cache", cached_version.name, cached_version.version)
        served = LoadedModel(
            cached_version.name, cached_version.version, cached_version.source, bundle, datetime.now(UTC)
        )
        model_version = RegisteredVersion(cached_version.version, cached_version.source, cached_version.hashes)
        return Outcome(
            replace(
                model,
                state="ready",
                served=served,
                wanted=model_version,
                trying=cached_version.version,
                hashed=bool(cached_version.hashes),
                restored=True,
            )
        )

    def _try(self, client: Any, model: ModelState, model_version: RegisteredVersion, arm: str) -> ModelState:
        """Download, test and load a version."""
        tampered = False
        try:
            hashes = hashes_of(model_version.hashes)
            tampered = model.restored and _answers(model, model_version) and _differs(model, hashes)
            if tampered:
                log.warning(
                    "model %s version %s of the cache is not the registered one and is downloaded again",
                    model.name,
                    model_version.version,
                )
            served = self._served(client, model, model_version, hashes, arm)
        except BundleError as error:
            metrics.swaps.labels(model.name, "refused").inc()
            log.warning("model %s version %s is refused: %s", model.name, model_version.version, error)
            failed = replace(model, state="refused", error=f"version {model_version.version}: {error}", tried=True)
        except CheckError as error:
            failed = self._untested(model, model_version, error)
        except Exception as error:  # An error of the connection, the disk or MLflow.
            failed = self._again(
                replace(model, slow=isinstance(error, TimeoutError)),
                f"version {model_version.version} cannot be fetched",
                error,
            )
        else:
            if served is model.served:
                return replace(
                    model,
                    state="ready",
                    error=None,
                    tries=0,
                    hashed=bool(hashes),
                    verified=True,
                    restored=False,
                    tried=True,
                    slow=False,
                )
            return replace(
                model,
                state="ready",
                served=served,
                error=None,
                tries=0,
                hashed=bool(hashes),
                verified=True,
                restored=False,
                tried=True,
                slow=False,
            )
        return replace(failed, served=None, restored=False) if tampered else failed

    def _served(
        self, client: Any, model: ModelState, model_version: RegisteredVersion, hashes: dict[str, str], arm: str
    ) -> LoadedModel:
        """Return the loaded version.

        Return ``model.served`` if it already answers with the same files.
        """
        target = self.cache.folder(model.name, model_version.version, model_version.source)

        def read(folder: Path) -> Files:
            files = read_version(folder, hashes, self.limits)
            if folder == target and not hashes and files.digests != self._downloaded.get(target):
                raise BundleError("the version has no hashes, and this process has not downloaded it")
            return files

        cache_hit = self.cache.read(model.name, model_version.version, model_version.source, read)
        folder, files = cache_hit or self.cache.fetch(
            model.name,
            model_version.version,
            model_version.source,
            lambda into: self._download(client, model, model_version, hashes, into),
            read,
        )
        try:
            if (
                model.served is not None
                and _answers(model, model_version)
                and model.served.bundle.digests == files.digests
            ):
                served = model.served
            else:
                bundle = self._load(model.name, folder, files, model_version.hashes)
                served = LoadedModel(
                    model.name, model_version.version, model_version.source, bundle, datetime.now(UTC), arm
                )
        except BaseException:
            if cache_hit is None:
                self.cache.drop(folder)
            raise
        if cache_hit is None:
            self.cache.keep_folder(folder, model.name, model_version.version, model_version.source)
            self._downloaded[target] = files.digests
        if served is not model.served:
            log.info("model %s: version %s answers, as %s", model.name, model_version.version, arm)
            metrics.swaps.labels(model.name, "swapped").inc()
        if arm == CHAMPION:
            self.cache.point(
                CachedVersion(model.name, model_version.version, model_version.source, model_version.hashes)
            )
        return served

    def _download(
        self, client: Any, model: ModelState, model_version: RegisteredVersion, hashes: dict[str, str], into: Path
    ) -> Path:
        deadline = Deadline(self.fetch_seconds, self.cancelled)
        return download(
            client,
            self.uri,
            model.name,
            model_version.version,
            into,
            lambda listed: select_files(listed, hashes),
            self.limits,
            deadline,
        )

    def _load(self, name: str, folder: Path, files: Files, hashes: str) -> Bundle:
        """Test a version in a child process, then load the same bytes that were tested."""
        self.checkers.check(folder, hashes, dict(files.digests))
        bundle = Bundle.from_files(files, threads=self.threads, seconds=self.checkers.seconds)
        if bundle.contract.project != name:
            raise BundleError(
                f"contract.json is of project '{bundle.contract.project}', the registered model is '{name}'"
            )
        return bundle

    def _untested(self, model: ModelState, model_version: RegisteredVersion, error: CheckError) -> ModelState:
        """Schedule another test after one without a result. Refuse the version after the third."""
        again = self._again(replace(model, slow=True), f"version {model_version.version}: {error}", report_first=True)
        if again.tries < MOST_CHECKS:
            return again
        metrics.swaps.labels(model.name, "refused").inc()
        return replace(again, state="refused", error=f"version {model_version.version}: {error} ({again.tries} times)")

    def _again(
        self, model: ModelState, what: str, error: Exception | None = None, report_first: bool = False
    ) -> ModelState:
        """Return the model with another try scheduled.

        Args:
            report_first: True to report even the first failure.
        """
        tries = model.tries + 1
        log.warning("model %s: %s (try %d)%s", model.name, what, tries, f": {line(error)}" if error else "")
        later = replace(
            model,
            tries=tries,
            next_try=time.monotonic() + min(LONGEST_PAUSE, self.poll_seconds * 2 ** min(tries - 1, 20)),
            tried=True,
        )
        if tries < QUIET_TRIES and not report_first:
            return later
        metrics.swaps.labels(model.name, "error").inc()
        return replace(later, state="error", error=f"{what} ({tries} tries): {line(error)}" if error else what)


def _answers(model: ModelState, model_version: RegisteredVersion) -> bool:
    """Return True if the version already answers."""
    return model.served is not None and (model.served.version, model.served.source) == (
        model_version.version,
        model_version.source,
    )


def _differs(model: ModelState, hashes: Mapping[str, str]) -> bool:
    """Return True if the answering files differ from the registered hashes."""
    assert model.served is not None
    return any(model.served.bundle.digests.get(name) != value for name, value in hashes.items())
