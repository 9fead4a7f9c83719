"""Checkpoints of a fit: where it stands, kept beside the manifest that it will end in, so that a killed fit goes on and does not begin again.

A checkpoint is one file, written whole or not at all, that names what it was made from: one of other inputs, or of other code, is not used.
"""

import io
from dataclasses import dataclass
from typing import Any

from upath import UPath

from include.data import storage
from include.training import manifest


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoint of one fit. Without a folder there is none: nothing is kept and nothing found."""

    folder: UPath | None = None
    made_from: str = ""

    @classmethod
    def beside(cls, uri: str | UPath, made_from: dict[str, Any] | None = None) -> "Checkpoints":
        """In ``<manifest without .json>.checkpoint/``.

        Args:
            uri: of the step's manifest.
            made_from: the step's inputs, with the commit of the code.
        """
        target = storage.path(uri)
        return cls(target.parent / f"{target.stem}.checkpoint", manifest.fingerprint(made_from or {}))

    def save(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint by this state: tensors, numbers, strings, lists and dictionaries of them."""
        if self.folder is None:
            return
        import torch

        content = io.BytesIO()
        torch.save({"made_from": self.made_from, **state}, content)
        storage.write(self.folder / "state.pt", content.getvalue())

    def load(self) -> bytes:
        """The checkpoint's bytes, for ``state``; none: ``b""``."""
        try:
            return b"" if self.folder is None else (self.folder / "state.pt").read_bytes()
        except FileNotFoundError:
            return b""

    def state(self, content: bytes) -> dict[str, Any] | None:
        """What was saved, or None if there is no checkpoint of these inputs. One that cannot be read is said, and then as good as none."""
        import torch

        if not content:
            return None
        try:
            # Tensors on the CPU: it may have been written by a machine with other devices. weights_only: nothing in it is executed.
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            made_from = state.pop("made_from")
        except Exception as error:  # whatever is wrong with the file, a fit from the start is right
            print(f"the checkpoint in {self.folder} cannot be read ({type(error).__name__}): starting from the first epoch", flush=True)
            return None
        return state if made_from == self.made_from else None

    def remove(self) -> None:
        """The fit has ended and its manifest says so. Safe to repeat."""
        if self.folder is None:
            return
        storage.remove(self.folder)
