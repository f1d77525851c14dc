"""How settings are spelled on the command line.

Below `cli`, messages name a `Setting`; here it becomes what can be typed after the command that is
running: `--unknown nearest`, or `data.unit=bytes` where the command takes KEY=VALUE.
"""

import shlex
from typing import Any

from typer.core import TyperCommand

from charlm.errors import CharlmError, Setting

_flags: dict[str, str] = {}  # of the running command's parameters; an argument has none


class Verb(TyperCommand):
    """A command whose messages name settings as its own options."""

    def invoke(self, ctx: Any) -> Any:
        """Run it."""
        _flags.clear()
        for parameter in self.params:
            is_option = parameter.param_type_name == "option"
            _flags[str(parameter.name)] = max(parameter.opts, key=len) if is_option else ""
        return super().invoke(ctx)


def spelling(setting: Setting) -> str:
    """Return a setting as the running command takes it."""
    section, _, name = setting.name.rpartition(".")
    if section and ("overrides" in _flags or name not in _flags):
        return str(setting)
    flag = _flags.get(name, f"--{name.replace('_', '-')}")
    switch = setting.value is None or setting.value is True
    return " ".join(filter(None, (flag, "" if switch else shlex.quote(str(setting.value)))))


def one_line(error: CharlmError) -> str:
    """Return an error as one line, settings spelled as options."""
    return "; ".join(error.lines(spelling))
