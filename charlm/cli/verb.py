"""What every verb has in common: options count once, and those that do not exist are answered."""

from typing import Any

import typer
from typer.core import TyperCommand

from charlm.cli import spelling
from charlm.errors import UsageError

# Options that people try, and what there is instead.
_NEVER = "charlm never writes over a run; choose another --out, or first: charlm runs rm RUN"
_IN_VAIN = {
    "--force": _NEVER,
    "--overwrite": _NEVER,
    "--length": "use --max-new-chars",
    "--max-new-tokens": "use --max-new-chars",
    "--max-tokens": "use --max-new-chars",
    "--num-samples": "use -n",
    "--start": "use --prompt",
    "--text": "use --file",
    "--data": "use --file",
    "--input": "use --file",
    "--model": "use --config for a preset, --run for a run",
}


class Verb(TyperCommand):
    """A command whose messages name settings as its own options, and whose options count once."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the command line; refuse an option of one value that is given twice."""
        if ctx.resilient_parsing:  # to complete a command
            return super().parse_args(ctx, args)
        try:
            self._refuse_twice(ctx, list(args))
            return super().parse_args(ctx, args)
        except typer.TyperException as error:
            option = getattr(error, "option_name", None)
            if option and hasattr(error, "possibilities") and (mend := self._instead(option)):
                raise UsageError(option, "no such option", mend) from None
            said: Any = error
            said.ctx = getattr(error, "ctx", None) or ctx  # whose help is named
            raise

    def _instead(self, option: str) -> str:
        """Return what to type in place of an option that does not exist, if that is known."""
        own = {name for one in self.params for name in one.opts}
        name = option.strip("-").replace("-", "_")
        if any(one.name == "overrides" for one in self.params):
            from charlm.config.problems import key_called

            if key := key_called(name):
                return f"set {key}=VALUE"
        mend = _IN_VAIN.get(option, "")
        if "use " in mend:
            return mend if own & set(mend.split()) else ""
        return mend if "--out" in own else ""

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
