"""A checkpoint of another program in one call: which program's it is shows in what it holds."""

from pathlib import Path

from charlm.errors import Phrase, Setting, UsageError
from charlm.exchange.foreign import characters_of, make_run
from charlm.exchange.makemore import makemore_of
from charlm.exchange.mingpt import CONFIG, mingpt_of
from charlm.exchange.nanogpt import alphabet_in, is_nanogpt, nanogpt_of
from charlm.exchange.torch_file import read_torch
from charlm.runs import RunFolder, next_free_name

TEXT = Setting("text")


def import_checkpoint(
    file: Path,
    out: Path | None = None,
    *,
    meta: Path | None = None,
    text: Path | None = None,
    n_head: int | None = None,
) -> RunFolder:
    """Make a run of a checkpoint of nanoGPT, minGPT or makemore; nothing in its files is run.

    Args:
        file: `ckpt.pt` of nanoGPT, or `model.pt` of the others.
        out: The folder of the new run. None: the next free name under `runs/`.
        meta: nanoGPT's `meta.pkl`, which has the alphabet, or minGPT's `config.json`; None: of minGPT,
            the one beside the file.
        text: The text that it was trained on; its alphabet is the sorted set of its characters. nanoGPT
            may have `meta` instead.
        n_head: Heads of makemore's transformer, which no file tells.

    Raises:
        UsageError: Something is not given, or the folder is not empty.
        CheckpointError: A file is damaged or something else, or the model has parts that charlm's
            lacks.
        DataError: The alphabet has another number of characters than the model.
        MachineError: A file cannot be read or written.
    """
    content = read_torch(file)
    if is_nanogpt(content):
        foreign = nanogpt_of(content, file)
        if (meta is None) == (text is None):
            what = "the checkpoint does not have its alphabet"
            either = Phrase("{} or {}", Setting("meta"), TEXT)
            raise UsageError(either, what, "give one of them")
        alphabet = alphabet_in(meta) if meta else characters_of(text or file)[0]
    else:
        config = meta or file.with_name(CONFIG)
        a_gpt = isinstance(content, dict) and any("transformer." in str(name) for name in content)
        of_mingpt = meta is not None or (n_head is None and a_gpt and config.is_file())
        known = None if text is None else characters_of(text, records=not of_mingpt)
        longest = 0 if known is None else known[1]
        foreign = (
            mingpt_of(content, file, config)
            if of_mingpt
            else makemore_of(content, file, longest, n_head)
        )
        if known is None:
            what = f"{file} does not have its alphabet"
            raise UsageError(TEXT, what, "name the text that the model was trained on")
        alphabet = known[0]
    place = out or next_free_name(foreign.program)
    source = text or meta or file
    return make_run(foreign, alphabet, place, text=text, file=file, source=source)
