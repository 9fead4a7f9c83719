"""How a command ends: 0, it went well; 1, it looked and something is not well; 2, it could not do what was asked, and says why."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from include.settings import Settings

Found = TypeVar("Found")


def settings_or_exit() -> "Settings":
    """The settings, with the standard variables of the libraries set from them."""
    from include.settings import SettingsError, get_settings, hand_on_standard_variables

    try:
        hand_on_standard_variables()
        return get_settings()
    except SettingsError as error:
        fail(str(error))


def terminal() -> "Console":
    from rich.console import Console

    return Console(highlight=False)


def or_exit(find: Callable[[str], Found], name: str) -> Found:
    """What ``find`` gives, or its words and exit status 2."""
    try:
        return find(name)
    except ValueError as error:
        fail(str(error))


def told(error: type[Exception], do: Callable[..., Any], *arguments: Any) -> Any:
    """What ``do`` gives, or the error's words and exit status 2."""
    try:
        return do(*arguments)
    except error as fault:
        fail(str(fault))


def fail(message: str) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(2)


def exit_unless(well: bool) -> None:
    if not well:
        raise typer.Exit(1)
