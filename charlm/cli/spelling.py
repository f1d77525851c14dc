"""How settings are spelled on the command line.

Below `cli`, messages name a `Setting`; here it becomes what can be typed after the command that is
running: `--unknown nearest`, or `data.unit=bytes` where the command takes KEY=VALUE.
"""

from collections.abc import Iterable
from typing import Any

from charlm.cli.escaping import quoted
from charlm.errors import CharlmError, Setting

# Settings of another verb: a message of `charlm verify` may advise to resume.
OF_TRAIN = ("config", "resume", "out", "allow_new_data")

_flags: dict[str, str] = {}  # of the running command's parameters; an argument has none


def use(parameters: Iterable[Any]) -> None:
    """Spell settings as these parameters, those of the running command."""
    _flags.clear()
    for parameter in parameters:
        is_option = parameter.param_type_name == "option"
        _flags[str(parameter.name)] = longest(parameter) if is_option else ""


def longest(option: Any) -> str:
    """Return the first of the long names of an option."""
    return next((name for name in option.opts if name.startswith("--")), str(option.opts[0]))


def spelling(setting: Setting) -> str:
    """Return a setting as the running command takes it."""
    section, _, name = setting.name.rpartition(".")
    if section and ("overrides" in _flags or name not in _flags):
        return quoted(str(setting)) if "\n" in str(setting) else str(setting)
    if name == "run" and "runs" in _flags:
        return "RUN as an argument"
    flag = _flags.get(name, f"--{name.replace('_', '-')}")
    if name == "run" and name not in _flags and "out" in _flags:
        flag = _flags["out"]  # `charlm train --resume` takes a run as the folder to write to
    if name in OF_TRAIN and _flags and name not in _flags:
        flag = f"charlm train {flag}"
    switch = setting.value is None or setting.value is True
    if not flag and switch:
        return name.upper()  # an argument, as the help names it
    return " ".join(filter(None, (flag, "" if switch else quoted(str(setting.value)))))


def one_line(error: CharlmError) -> str:
    """Return an error as one line, settings spelled as options."""
    return "; ".join(error.lines(spelling))
