"""The text to score: a part of the run's own text, or another text in the run's alphabet."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from charlm.config import DataConfig
from charlm.errors import CheckpointError, DataError, Phrase, Setting, Words, number_of
from charlm.evaluation.unknown import LeftOut, leave_out
from charlm.models import AdaptiveReader
from charlm.runs import RunFolder
from charlm.runs.load import SavedModel
from charlm.storage.machine import is_gone
from charlm.text import CharTokenizer, Tokenizer, encode_corpus, open_corpus, open_source, scan_text
from charlm.text.columns import as_table_or_text
from charlm.text.scan import Progress
from charlm.text.tokenizer import normal_form, not_in_alphabet
from charlm.text.tokens import Ids, Split


@dataclass(frozen=True)
class GivenText:
    """A text to score: its known characters by the model's ids, and its unknown ones.

    `tokenizer` has all of its characters; `notes` are remarks about the text. `strange` are those of
    another text that the model's alphabet lacks, the most frequent first.
    """

    ids: Ids
    tokenizer: Tokenizer
    left_out: LeftOut | None = None
    notes: tuple[str, ...] = ()
    strange: tuple[str, ...] = ()


def open_part(run: RunFolder, name: str) -> tuple[Split, Mapping[str, Any]]:
    """Open a part of a run's own text, `train`, `val` or `test`, and the facts of the text.

    Raises CheckpointError if the run has lost its text, DataError if that is cut off or the part has
    fewer than 2 characters.
    """
    if is_gone(run.tokens_path):
        what = "has no text: it was exported or copied without it"
        raise CheckpointError(run.path, what, "score a text of yours instead")
    corpus = open_corpus(run.text_path)
    part = corpus.splits[name]
    if len(part) < 2:
        symbol = "byte" if corpus.facts["unit"] == "bytes" else "character"
        what = f"its {name} part has {number_of(len(part), symbol)}"
        raise DataError(run.path, what, f"use a run made with a larger data.{name}_fraction")
    return part, corpus.facts


def adaptive_reader(saved: SavedModel) -> AdaptiveReader:
    """Return a reader of one text with a run's model, which learns as `adapt` of its configuration says.

    Raises CheckpointError if the text that the run was trained on is missing, DataError if it is cut
    off.
    """
    return saved.model.adaptive(saved.config.adapt, open_part(saved.run, "train")[0])


def _named(words: Words) -> Iterator[str]:
    """Yield the names of the settings in a message."""
    if isinstance(words, Setting):
        yield words.name
    for part in words.parts if isinstance(words, Phrase) else ():
        yield from _named(part)


@contextmanager
def read_as(data: DataConfig) -> Iterator[None]:
    """While in this context, an error does not advise to read a text otherwise than a run reads its own."""
    try:
        yield
    except DataError as error:
        named = set(_named(error.mend))
        if "data.encoding" in named:
            mend = f"convert it to {data.encoding.upper()} first, with iconv"
            raise error.replace(mend=mend) from None
        if "data.unit" in named:
            raise error.replace(mend="use a run of bytes, which can score it") from None
        if named & {"data.records", "data.min_count"}:  # a symbol that has a meaning there
            raise error.replace(mend="remove it") from None
        if "data.missing" in named:
            raise error.replace(mend="add it, or leave the row out") from None
        raise


def read_text(
    name: str,
    data: DataConfig,
    own: Tokenizer,
    scratch: Path,
    unknown: Literal["error", "uniform"] = "error",
    progress: Progress = lambda what, read: None,
) -> GivenText:
    """Read a text in the same way as a run read its own.

    Args:
        name: A file, folder, glob, named text or `-`.
        data: How the run read its text.
        own: The run's tokenizer.
        scratch: A folder for the ids; it must outlive the text.
        unknown: `error` refuses characters that the model lacks, `uniform` sets them apart. In an
            alphabet with an escape none is unknown: see `charlm.text.escapes`.
        progress: Called with "reading" or "encoding" and the bytes read since the last call.

    Raises:
        DataError: The text cannot be read, has unknown characters, or too few known ones.
    """
    whole = {"val_fraction": 0.0, "test_fraction": 0.0, "shuffle": False, "unique": False}
    data = data.model_copy(update={"source": name, **whole})
    with read_as(data):
        source = open_source(name)
        data = as_table_or_text(data, source)
        scan = scan_text(source, data, progress)
    strange = [] if own.escape is not None else scan.strange_to(own)
    known = scan.size - sum(int(scan.counts[ord(c)]) for c in strange)
    if strange and unknown == "error":
        uniform = Setting("unknown", "uniform")
        which = number_of(scan.size - known, "unknown character")
        mend = f"use {{}} to score the {which} by a uniform code"
        if form := normal_form(strange, getattr(own, "alphabet", "")):
            mend = f"convert it to the normal form {form}, as the run's text is, or {mend}"
        raise DataError(source.name, not_in_alphabet(strange, own), Phrase(mend, uniform))
    if not known:
        raise DataError(name, "the model knows none of its characters", "use another model")
    if known < 2:
        of_it = " that the model knows" if strange else ""
        raise DataError(name, f"only one character{of_it}; the first of a text is not scored")
    wide = own
    if strange and isinstance(own, CharTokenizer):
        wide = CharTokenizer([*own.alphabet, *strange], boundary=own.boundary is not None)
    tokens = scratch / "tokens"
    corpus = encode_corpus(source, data, scan, wide, tokens, progress)
    text, notes = corpus.splits["train"], tuple(scan.notes)
    lacking = tuple(sorted(scan.strange_to(own), key=lambda c: -scan.counts[ord(c)]))
    if not strange:
        return GivenText(text, own, None, notes, lacking)
    assert isinstance(own, CharTokenizer)
    assert isinstance(wide, CharTokenizer)
    ids, left_out = leave_out(text, wide, own, scratch / "known.bin")
    return GivenText(ids, wide, left_out, notes, lacking)
