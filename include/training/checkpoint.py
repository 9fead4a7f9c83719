"""Checkpoints of a fit, stored next to its manifest, so that a killed fit can resume.

A checkpoint is one file, written atomically. It contains a fingerprint of its inputs and code. A
checkpoint of other inputs or other code is not used.
"""

import io
from dataclasses import dataclass
from typing import Any

from upath import UPath

from include.data import storage
from include.training import manifest


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoint of one fit. Without a folder, nothing is stored or loaded."""

    folder: UPath | None = None
    made_from: str = ""

    @classmethod
    def from_manifest(cls, uri: str | UPath, made_from: dict[str, Any] | None = None) -> "Checkpoints":
        """Return the checkpoints in ``<manifest without .json>.checkpoint/``.

        Args:
            uri: the step's manifest.
            made_from: the step's inputs, with the commit of the code.
        """
        target = storage.path(uri)
        return cls(target.parent / f"{target.stem}.checkpoint", manifest.fingerprint(made_from or {}))

    def save(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint by this state.

        It may contain tensors, numbers, strings, and lists and dictionaries of them.
        """
        if self.folder is None:
            return
        import torch

        content = io.BytesIO()
        torch.save({"made_from": self.made_from, **state}, content)
        storage.write(self.folder / "state.pt", content.getvalue())

    def load(self) -> bytes:
        """Return the checkpoint's bytes for ``state``, or ``b""`` if there is none."""
        try:
            return b"" if self.folder is None else (self.folder / "state.pt").read_bytes()
        except FileNotFoundError:
            return b""

    def state(self, content: bytes) -> dict[str, Any] | None:
        """Return the saved state, or None if there is no checkpoint of these inputs.

        An unreadable checkpoint is logged and ignored.
        """
        import torch

        if not content:
            return None
        try:
            # Load tensors to the CPU, because the file may come from a machine with other devices.
            # With weights_only, no code in it is executed.
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            made_from = state.pop("made_from")
        except Exception as error:  # whatever is wrong with the file, a fresh fit is correct
            print(
                f"the checkpoint in {self.folder} cannot be read ({type(error).__name__}): starting from the first"
                " epoch",
                flush=True,
            )
            return None
        return state if made_from == self.made_from else None

    def remove(self) -> None:
        """Remove the checkpoint after the manifest is written. Safe to repeat."""
        if self.folder is None:
            return
        storage.remove(self.folder)
