"""How a version comes to answer: look it up, download it, compare its files, test it in a child process, load it. Runs in background threads."""

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from serving import metrics
from serving.bundle import Bundle
from serving.checker import CheckError, Checkers
from serving.http_deadline import Deadline
from serving.known_models import Model, Wanted
from serving.mlflow_registry import download, wanted
from serving.model_cache import Kept, ModelCache
from serving.rollout import CHAMPION
from serving.served import Served
from serving.untrusted import line
from serving.version_files import BundleError, Files, Limits, hashes_of, read_version, wanted_files

QUIET_TRIES = 3  # failed downloads before they are called an error: the failure may be temporary
MOST_CHECKS = 3  # tests without a result before the version is refused: the machine may have been busy
LONGEST_PAUSE = 60.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """Result of a job: the model, and its version as the registry has it (None: unknown)."""

    model: Model
    wanted: Wanted | None = None


class Loader:
    """Loads versions.

    Args:
        fetch_seconds: deadline for downloading one version.
        cancelled: once it is set, downloads end.
    """

    def __init__(
        self, cache: ModelCache, checkers: Checkers, uri: str, *, threads: int, limits: Limits, fetch_seconds: float, poll_seconds: float,
        cancelled: threading.Event,
    ) -> None:  # fmt: skip
        self.cache, self.checkers, self.uri, self.threads, self.limits = cache, checkers, uri, threads, limits
        self.fetch_seconds, self.poll_seconds, self.cancelled = fetch_seconds, poll_seconds, cancelled
        self._downloaded: dict[Path, Mapping[str, str]] = {}  # digests of versions without hashes that this process has downloaded

    def follow(self, client: Any, model: Model, version: str, known: Wanted | None, arm: str) -> Outcome:
        """Make a version answer.

        Args:
            known: the version as the registry has it, if it was looked up already.
            arm: in which it is to answer.
        """
        try:
            found = known or wanted(client, model.name, version)
        except Exception as error:  # the connection's, the registry's, or the entry's
            return Outcome(self._again(model, f"version {version} cannot be looked up: {line(error)}", told=True))
        if found != model.wanted:
            model = replace(model, state="ready" if model.served else "loading", error=None, wanted=found, tries=0, next_try=0.0)
        answers = _answers(model, found)
        if (answers and model.verified) or model.state == "refused":
            return Outcome(model, found)
        return Outcome(self._try(client, model, found, arm), found)

    def recover(self, client: Any, model: Model, kept: Kept) -> Outcome:
        """Make the version of the cache answer, though no alias names it: compared with the registry if it is still there, else with its own hashes."""
        try:
            found = wanted(client, kept.name, kept.version)
        except Exception as error:
            log.warning("model %s: version %s is not in the registry any more: %s", kept.name, kept.version, line(error))
            return self.restore(model, kept)
        if found.source != kept.source:  # another registry's version of that number
            return Outcome(model)
        return self.follow(client, model, kept.version, found, CHAMPION)

    def restore(self, model: Model, kept: Kept) -> Outcome:
        """Make the version of the cache answer, while the registry is away."""
        try:
            read = self.cache.read(kept.name, kept.version, kept.source, lambda folder: read_version(folder, hashes_of(kept.hashes), self.limits))
            if read is None:
                return Outcome(model)
            bundle = self._load(kept.name, *read, kept.hashes)
        except Exception as error:
            log.warning("model %s version %s of the cache cannot be used: %s", kept.name, kept.version, line(error))
            return Outcome(model)
        log.info("model %s: version %s answers, from the cache", kept.name, kept.version)
        served = Served(kept.name, kept.version, kept.source, bundle, datetime.now(UTC))
        found = Wanted(kept.version, kept.source, kept.hashes)
        return Outcome(replace(model, state="ready", served=served, wanted=found, trying=kept.version, hashed=bool(kept.hashes), restored=True))

    def _try(self, client: Any, model: Model, found: Wanted, arm: str) -> Model:
        """Download, test and load a version."""
        tampered = False
        try:
            hashes = hashes_of(found.hashes)
            tampered = model.restored and _answers(model, found) and _differs(model, hashes)
            if tampered:
                log.warning("model %s version %s of the cache is not the registered one and is downloaded again", model.name, found.version)
            served = self._served(client, model, found, hashes, arm)
        except BundleError as error:
            metrics.swaps.labels(model.name, "refused").inc()
            log.warning("model %s version %s is refused: %s", model.name, found.version, error)
            failed = replace(model, state="refused", error=f"version {found.version}: {error}", tried=True)
        except CheckError as error:
            failed = self._untested(model, found, error)
        except Exception as error:  # the connection's, the disk's, MLflow's
            failed = self._again(replace(model, slow=isinstance(error, TimeoutError)), f"version {found.version} cannot be fetched", error)
        else:
            if served is model.served:
                return replace(model, state="ready", error=None, tries=0, hashed=bool(hashes), verified=True, restored=False, tried=True, slow=False)
            return replace(model, state="ready", served=served, error=None, tries=0, hashed=bool(hashes), verified=True, restored=False, tried=True, slow=False)
        return replace(failed, served=None, restored=False) if tampered else failed

    def _served(self, client: Any, model: Model, found: Wanted, hashes: dict[str, str], arm: str) -> Served:
        """The version, ready to answer: the one that answers already, if its files are those of the registry."""
        target = self.cache.folder(model.name, found.version, found.source)

        def read(folder: Path) -> Files:
            files = read_version(folder, hashes, self.limits)
            if folder == target and not hashes and files.digests != self._downloaded.get(target):
                raise BundleError("the version has no hashes, and this process has not downloaded it")
            return files

        kept = self.cache.read(model.name, found.version, found.source, read)
        folder, files = kept or self.cache.fetch(model.name, found.version, found.source, lambda into: self._download(client, model, found, hashes, into), read)
        try:
            if model.served is not None and _answers(model, found) and model.served.bundle.digests == files.digests:
                served = model.served
            else:
                bundle = self._load(model.name, folder, files, found.hashes)
                served = Served(model.name, found.version, found.source, bundle, datetime.now(UTC), arm)
        except BaseException:
            if kept is None:
                self.cache.drop(folder)
            raise
        if kept is None:
            self.cache.keep_folder(folder, model.name, found.version, found.source)
            self._downloaded[target] = files.digests
        if served is not model.served:
            log.info("model %s: version %s answers, as %s", model.name, found.version, arm)
            metrics.swaps.labels(model.name, "swapped").inc()
        if arm == CHAMPION:
            self.cache.point(Kept(model.name, found.version, found.source, found.hashes))
        return served

    def _download(self, client: Any, model: Model, found: Wanted, hashes: dict[str, str], into: Path) -> Path:
        deadline = Deadline(self.fetch_seconds, self.cancelled)
        return download(client, self.uri, model.name, found.version, into, lambda listed: wanted_files(listed, hashes), self.limits, deadline)

    def _load(self, name: str, folder: Path, files: Files, hashes: str) -> Bundle:
        """Test a version in a child process; then load the very bytes that were tested."""
        self.checkers.check(folder, hashes, dict(files.digests))
        bundle = Bundle.of(files, threads=self.threads, seconds=self.checkers.seconds)
        if bundle.contract.project != name:
            raise BundleError(f"contract.json is of project '{bundle.contract.project}', the registered model is '{name}'")
        return bundle

    def _untested(self, model: Model, found: Wanted, error: CheckError) -> Model:
        """A test without a result is repeated, at most three times."""
        again = self._again(replace(model, slow=True), f"version {found.version}: {error}", told=True)
        if again.tries < MOST_CHECKS:
            return again
        metrics.swaps.labels(model.name, "refused").inc()
        return replace(again, state="refused", error=f"version {found.version}: {error} ({again.tries} times)")

    def _again(self, model: Model, what: str, error: Exception | None = None, told: bool = False) -> Model:
        """A model whose version is tried again later.

        Args:
            told: report the first failure already.
        """
        tries = model.tries + 1
        log.warning("model %s: %s (try %d)%s", model.name, what, tries, f": {line(error)}" if error else "")
        later = replace(model, tries=tries, next_try=time.monotonic() + min(LONGEST_PAUSE, self.poll_seconds * 2 ** min(tries - 1, 20)), tried=True)
        if tries < QUIET_TRIES and not told:
            return later
        metrics.swaps.labels(model.name, "error").inc()
        return replace(later, state="error", error=f"{what} ({tries} tries): {line(error)}" if error else what)


def _answers(model: Model, found: Wanted) -> bool:
    """Whether a version answers already."""
    return model.served is not None and (model.served.version, model.served.source) == (found.version, found.source)


def _differs(model: Model, hashes: Mapping[str, str]) -> bool:
    """Whether the answering files are provably others than the registered ones."""
    assert model.served is not None
    return any(model.served.bundle.digests.get(name) != value for name, value in hashes.items())
