"""The command class of every verb: it refuses options that are given twice."""

from typing import Any

from typer.core import TyperCommand

from charlm.cli import spelling
from charlm.errors import UsageError


class Verb(TyperCommand):
    """A command whose messages name settings as its own options, and whose options count once."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the command line; refuse an option of one value that is given twice."""
        if not ctx.resilient_parsing:  # completing a command
            self._refuse_twice(ctx, list(args))
        return super().parse_args(ctx, args)

    def _refuse_twice(self, ctx: Any, args: list[str]) -> None:
        """Parse once more with every value kept; the parser itself keeps the last in silence."""
        single: list[Any] = [one for one in self.params if one.param_type_name == "option"]
        single = [one for one in single if not one.multiple and not one.count]
        for one in single:
            one.multiple = True
        try:
            given, _, _ = self.make_parser(ctx).parse_args(args)
        finally:
            for one in single:
                one.multiple = False
        for one in single:
            values = given.get(one.name) or []
            if len(values) < 2:
                continue
            flag = spelling.longest(one)
            if not one.is_flag:
                what = f"given twice: {values[0]!r}, then {values[1]!r}"
                raise UsageError(flag, what, "keep one")
            if len(set(values)) > 1:  # the same flag twice says nothing new
                raise UsageError(f"{flag} and {one.secondary_opts[0]}", "given both", "choose one")

    def invoke(self, ctx: Any) -> Any:
        """Run it."""
        spelling.use(self.params)
        return super().invoke(ctx)
