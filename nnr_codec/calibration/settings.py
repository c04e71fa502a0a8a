"""What users set of the calibration: functions of theirs, and what the outputs are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

from ..errors import InvalidOptions
from ..user.code import in_a_line

_SETTINGS = ("perturb", "loss", "outputs")
_CALLS = {"perturb": "perturb(inputs, generator)", "loss": "loss(outputs, targets)"}


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raise InvalidOptions if a setting is of another name, or of another kind."""
    unknown = [name for name in settings if name not in _SETTINGS]
    if unknown:
        reason = f"has the setting {unknown[0]!r}; settings are {', '.join(_SETTINGS)}"
        raise InvalidOptions("calibrate", reason)
    for name in ("perturb", "loss"):
        if settings.get(name) is not None and not callable(settings[name]):
            raise InvalidOptions("calibrate", f"the setting {name!r} is not a function")
    if settings.get("outputs") not in (None, "classes", "values"):
        reason = 'the setting \'outputs\' is neither "classes" nor "values"'
        raise InvalidOptions("calibrate", reason)


def naming_setting(setting: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of the user's whose errors are those of the setting, not of the module."""

    @wraps(function)
    def called(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except Exception as error:
            reason = f"the setting {setting!r} failed: {in_a_line(error)}"
            call = f"it is called as {_CALLS[setting]}"
            raise InvalidOptions("calibrate", f"{reason} ({call})") from error

    return called
