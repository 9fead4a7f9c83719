"""The error about a wrong setting, and its words."""

from pydantic import ValidationError

# Ends the errors about missing or weak secrets.
FIX = "`airloop init-env` makes what is missing in the settings file (docs/runbooks/profiles.md)."


class SettingsError(ValueError):
    """Raised when a setting is missing or wrong.

    The message names the setting and the fix. It contains no secret.
    """


def in_words(error: ValidationError) -> str:
    """Return pydantic's error with the names of the environment variables."""
    lines = []
    for one in error.errors(include_url=False, include_input=False):
        name = "".join(f"AIRLOOP_{str(part).upper()}: " for part in one["loc"][:1])
        message = one["msg"].removeprefix("Value error, ")
        lines.append(
            f"{name}no such setting"
            if one["type"] == "extra_forbidden"
            else message
            if message.startswith("AIRLOOP_")
            else name + message
        )
    return "\n".join(lines)
