"""The `config.json` of a run: what it has to hold, and the settings that it stands for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .experiment import Experiment, UsageError
from .files import UNFIT, expect, first_line, read_json

CONFIG = {"experiment": str, "options": dict, "settings": dict, "sessions": list}
"""What config.json has to hold, and of which types."""
SESSION = {"started": str, "versions": dict, "machine": dict}
"""What each of its sessions has to hold."""
COPY = "put back a copy of it, or start a new run: nothing else in the folder is lost"


def read_config(folder: Path) -> dict[str, Any]:
    """The content of a run's `config.json`.

    Raises
    ------
    UsageError
        When it is damaged.
    """
    path = folder / "config.json"
    try:
        config = read_json(path, CONFIG)
        for session in config["sessions"]:
            expect(session, SESSION)
        if not config["sessions"]:
            raise ValueError("it has no session")
    except UsageError as error:
        raise UsageError(f"{error}; {COPY}") from error
    except ValueError as error:
        raise UsageError(f"a session in {path} is damaged ({error}); {COPY}") from error
    return config


def resolved(
    experiment: Experiment, config: Mapping[str, Any], options: Mapping[str, Any], folder: Path
) -> Any:
    """The settings of a run that was started with the options in its `config.json`, and goes on with others."""
    try:
        experiment.resolve(config["options"])
    except (UsageError, *UNFIT) as error:
        raise UsageError(
            f"{folder / 'config.json'} has options that {experiment.name} has not ({first_line(error)}); {COPY}"
        ) from error
    return experiment.resolve({**config["options"], **options})
