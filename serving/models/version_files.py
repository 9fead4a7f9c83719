"""Read and verify the files of one model version: their names, sizes and hashes.

Every file is read once, through descriptors that do not follow links. The hash is computed from the
same bytes that are loaded afterwards.
"""

import errno
import hashlib
import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from serving.models.untrusted import DocumentError, parse_object, printable

GRAPH, CONTRACT, GOLDEN, RULE = "model.onnx", "contract.json", "golden.json", "baseline.onnx"
FILES = (GRAPH, CONTRACT, GOLDEN)
LOADED = frozenset((*FILES, RULE))
# Files that MLflow adds to a model. Serving does not download them.
MLFLOWS_OWN = frozenset(
    (
        "MLmodel",
        "conda.yaml",
        "python_env.yaml",
        "requirements.txt",
        "input_example.json",
        "serving_input_example.json",
        "registered_model_meta",
    )
)
# Files that also belong to a version without hashes. Serving does not read them.
OTHERS = frozenset(("reference.parquet",))
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
SHA256 = re.compile(r"[0-9a-f]{64}")
DOCUMENT_BYTES = {CONTRACT: 256 * 2**10, GOLDEN: 4 * 2**20}


class BundleError(ValueError):
    """Raised if a version is invalid. A retry does not help."""


@dataclass(frozen=True)
class FileLimits:
    """The limits of one version's files."""

    files: int = 20
    file_bytes: int = 2**30
    total_bytes: int = 2**30

    def check(self, sizes: Mapping[str, int]) -> None:
        """Raise ``BundleError`` if there are too many files, or if they are too large.

        Args:
            sizes: Bytes by file name.
        """
        if len(sizes) > self.files:
            raise BundleError(
                f"the version has {len(sizes)} files; at most {self.files} are loaded (SERVING_MAX_MODEL_FILES)"
            )
        for name, size in sizes.items():
            if size > self.limit_for(name):
                raise BundleError(
                    f"{name} has {size} bytes; at most {self.limit_for(name)} are loaded (SERVING_MAX_MODEL_BYTES)"
                )
        if sum(sizes.values()) > self.total_bytes:
            raise BundleError(
                f"the version has {sum(sizes.values())} bytes; at most {self.total_bytes} are loaded"
                " (SERVING_MAX_MODEL_BYTES)"
            )

    def limit_for(self, name: str) -> int:
        return min(self.file_bytes, self.total_bytes, DOCUMENT_BYTES.get(name, self.file_bytes))


@dataclass(frozen=True)
class Files:
    """A version's files in memory.

    Attributes:
        contents: The files that serving loads, by name.
        digests: Hex SHA-256 of every file, by name.
    """

    contents: Mapping[str, bytes] = field(repr=False)
    digests: Mapping[str, str]


def hashes_of(tag: str) -> dict[str, str]:
    """Return the hashes of a version's tag ``bundle_sha256`` by file name.

    The result is empty if training did not write the tag.

    Raises:
        BundleError: The tag does not have the format that training writes.
    """
    if not tag:
        return {}
    try:
        hashes = parse_object(tag, "the version's tag bundle_sha256")
    except DocumentError as error:
        raise BundleError(str(error)) from None
    for name, value in hashes.items():
        if not NAME.fullmatch(name) or not isinstance(value, str) or not SHA256.fullmatch(value):
            raise BundleError(
                f"the version's tag bundle_sha256: '{printable(name, 100)}' is not a file name with the hex of its"
                " SHA-256"
            )
    return hashes


def select_files(listed: Iterable[str], hashes: Mapping[str, str]) -> list[str]:
    """Select the files of a version to load.

    Args:
        listed: The names of all files and folders in the version's folder.
        hashes: The result of ``hashes_of``.

    Raises:
        BundleError: A file without a hash is unknown, or a file to load does not have a hash.
        FileNotFoundError: A file is missing.
    """
    names = set(listed)
    known = hashes.keys() if hashes else LOADED | OTHERS
    selected = (names & known) | set(FILES) | hashes.keys()
    unknown = sorted(names - known - MLFLOWS_OWN)
    if hashes and (unhashed := unknown or sorted(selected - hashes.keys())):
        raise BundleError(
            f"the version has no hash of {', '.join(printable(name, 100) for name in unhashed[:5])} (tag bundle_sha256)"
        )
    if unknown:
        raise BundleError(f"the version holds '{printable(unknown[0], 100)}', which does not belong to a model version")
    if missing := sorted(selected - names):
        raise FileNotFoundError(f"no model bundle: {', '.join(missing)} missing")
    return [*FILES, *sorted(selected - set(FILES))]


def read_version(folder: Path, hashes: Mapping[str, str], limits: FileLimits = FileLimits()) -> Files:
    """Read a version's folder and compare every file with its hash.

    Raises:
        BundleError: A file is unknown, too large, a link, not a plain file, or different from the
            registered one.
        FileNotFoundError: A file or the folder is missing.
    """
    try:
        directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise BundleError("the version's folder is a link or no folder") from None
        raise
    try:
        names = os.listdir(directory)  # noqa: PTH208 (of a descriptor)
        selected = select_files(names, hashes)
        limits.check({name: os.stat(name, dir_fd=directory, follow_symlinks=False).st_size for name in selected})
        contents, digests, left = {}, {}, limits.total_bytes
        for name in selected:
            content = _read(directory, name, min(left, limits.limit_for(name)))
            left -= len(content)
            digests[name] = hashlib.sha256(content).hexdigest()
            if hashes and digests[name] != hashes[name]:
                raise BundleError(f"{name} is not the file that was registered: its SHA-256 differs")
            if name in LOADED:
                contents[name] = content
    finally:
        os.close(directory)
    return Files(contents, digests)


def _read(directory: int, name: str, most: int) -> bytes:
    try:
        # O_NONBLOCK opens a pipe without waiting for a writer.
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise BundleError(f"{name} is a link") from None
        raise
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise BundleError(f"{name} is not a plain file")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            content = file.read(min(status.st_size, most) + 1)
    finally:
        os.close(descriptor)
    if len(content) > min(status.st_size, most):
        raise BundleError(
            f"{name} changes while it is read, or the version has more bytes than are loaded (SERVING_MAX_MODEL_BYTES)"
        )
    return content
