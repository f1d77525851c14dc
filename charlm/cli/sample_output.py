"""The output of charlm sample: texts, what stands between them, and JSON."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from charlm.cli import output
from charlm.errors import number_of
from charlm.sampling import Drawing, Piece, Text, Wanted, draw_wanted
from charlm.text.raw import for_json

BETWEEN = "---"  # a line between texts that may have empty lines


@dataclass(frozen=True)
class Style:
    """How texts are shown."""

    json: bool  # as JSON objects, each when its text is complete
    echo: bool  # after their prompts
    colour: bool  # by probability
    quiet: bool  # without titles and progress
    separator: str | None  # a line between texts; None: as they need
    empty_lines: bool  # whether texts may have empty lines, so that one does not separate them


class Show:
    """Shows the texts of one command."""

    def __init__(self, style: Style, unit: str) -> None:
        self.style = style
        self.out = output.TextOut(unit)
        self.separator: str | None = None
        self.titled = self.begun = False
        self.cut_off = 0  # texts of the last prompt

    @property
    def quiet(self) -> bool:
        """Whether stderr gets no remarks on how it went."""
        return self.style.json or self.style.quiet

    def prompted(self, prompt: str, drawing: Drawing) -> None:
        """Get ready for the texts after a prompt."""
        one_line = drawing.of_one_line and not (self.style.echo and "\n" in prompt)
        self.separator = self.style.separator
        # A title for each line would be longer than the lines.
        self.titled = self.out.terminal and not one_line and not self.style.quiet
        if self.separator is None and not one_line:
            self.separator = BETWEEN if self.style.empty_lines and not self.titled else ""
        self.cut_off = 0
        if self.out.terminal:  # there, the line that a person types stands between
            self.begun = False

    def progress(self, number: int) -> AbstractContextManager[Any]:
        """Return a bar for that many texts; none where they are seen themselves."""
        hidden = self.style.quiet or self.out.terminal or number == 1
        return output.bar("sampling", "text", number, disable=hidden or None, unit_scale=False)  # type: ignore[no-any-return]

    def begin(self, prompt: str, title: str) -> None:
        """Begin a text."""
        if self.style.json:
            return
        if self.begun and self.separator is not None:
            self.out.write(f"{self.separator}\n")
        self.begun = True
        if title and self.titled:
            output.say(title)
        if self.style.echo:
            self.out.write(prompt)

    def pieces(self, pieces: Sequence[Piece]) -> None:
        """Show the next characters of the text."""
        for piece in () if self.style.json else pieces:
            self.out.write(piece.text, piece.nats if self.style.colour else None)

    def end(self, prompt: str, text: Text) -> None:
        """End the line if the text has not, or print the object."""
        self.cut_off += text.ended == "length"
        whole = (prompt if self.style.echo else "") + text.text()
        if self.style.json:
            output.result_json(for_json("text", whole) | for_json("prompt", prompt) | _facts(text))
        elif not whole.endswith("\n"):
            self.out.write("\n")


def write(
    drawing: Drawing,
    prompt: str,
    seeds: range,
    best_of: int,
    show: Show,
    wanted: Wanted | None = None,
) -> int:
    """Write a text for each seed; of those drawn in parallel, the first is printed as it grows.

    With `wanted`, draw on until as many texts are wanted. Return the first seed that is still free.
    """
    model, length, many = drawing.model, len(drawing.prompt), len(seeds)
    if not (drawing.learned or model.any_length) and length > model.block_size:
        seen = f"the model sees only the last {model.block_size}"
        symbols = output.units(drawing.tokenizer.unit)
        output.note(f"the prompt has {length} {symbols}; {seen}")
    show.prompted(prompt, drawing)
    with show.progress(many) as bar:
        if wanted is None:
            _write(drawing, prompt, seeds, best_of, show, bar.update)
        else:
            before = wanted.drawn
            found = _write_wanted(drawing, prompt, seeds, best_of, show, wanted, bar.update)
    if show.cut_off and drawing.tokenizer.boundary is not None and not show.quiet:
        were = number_of(show.cut_off, "sample was", "samples were")
        at = number_of(drawing.task.count, "character")
        output.note(f"{were} cut off after {at}, before the end; raise --max-new-chars")
    if wanted is None:
        return seeds.stop
    if found < many and not drawing.should_stop():
        output.note(f"found {found:,} of {number_of(many, 'text')}; {wanted}")
    elif not show.quiet:
        output.say(str(wanted))
    return seeds.start + (wanted.drawn - before) * best_of


def _write_wanted(
    drawing: Drawing,
    prompt: str,
    seeds: range,
    best_of: int,
    show: Show,
    wanted: Wanted,
    shown: Callable[[], Any],
) -> int:
    """Write as many wanted texts as there are seeds, if they are found; return their number."""
    found, many = 0, len(seeds)
    for found, text in enumerate(draw_wanted(drawing, seeds.start, many, wanted, best_of), 1):
        show.begin(prompt, f"--- sample {found} of {many}, seed {text.seed}" * (many > 1))
        show.pieces(text.pieces)
        show.end(prompt, text)
        shown()
    return found


def _write(
    drawing: Drawing,
    prompt: str,
    seeds: Sequence[int],
    best_of: int,
    show: Show,
    shown: Callable[[], Any],
) -> None:
    many = len(seeds)
    titles = (f"--- sample {i} of {many}, seed {s}" * (many > 1) for i, s in enumerate(seeds, 1))
    for group in drawing.groups(seeds) if best_of == 1 else ([s] for s in seeds):
        show.begin(prompt, next(titles))
        if best_of > 1:
            texts = [drawing.best(range(group[0], group[0] + best_of))]
            show.pieces(texts[0].pieces)
        else:
            texts = drawing.draw(group, None if show.style.json else show.pieces)
        show.end(prompt, texts[0])
        shown()
        for text in texts[1:]:
            if drawing.should_stop():
                return
            show.begin(prompt, next(titles))
            show.pieces(text.pieces)
            show.end(prompt, text)
            shown()
        if drawing.should_stop():
            return


def _facts(text: Text) -> dict[str, Any]:
    pieces, likely = text.pieces, [piece.likely for piece in text.pieces]
    record = {
        "chars": len(pieces),
        "ended": text.ended,
        "seconds": round(text.seconds, 4),
        "chars_per_second": round(len(pieces) / max(text.seconds, 1e-9), 1),
        "seed": text.seed,
        "mean_logprob_nats": text.mean_logprob(),
        "logprobs_nats": [round(piece.nats, 4) for piece in pieces],
    }
    return record | ({"alternatives": likely} if any(likely) else {})
