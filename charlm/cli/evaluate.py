"""charlm eval: every character of a text scored once."""

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from charlm.cli import output
from charlm.cli.signals import Stopped, StopSignals
from charlm.errors import DataError, UsageError

if TYPE_CHECKING:
    from charlm.evaluation import Score
    from charlm.evaluation.windows import Ids
    from charlm.models.saved import SavedModel


def evaluate(
    run: Annotated[
        Path | None, typer.Option(help="Run folder. Default: the newest in runs/.")
    ] = None,
    split: Annotated[
        Literal["train", "val", "test"], typer.Option(help="Part of the run's text.")
    ] = "val",
    file: Annotated[
        str | None, typer.Option(help="Score this text instead: a file, folder, glob, name or -.")
    ] = None,
    block_size: Annotated[
        int | None, typer.Option(min=1, help="Characters in a window. Default: the model's own.")
    ] = None,
    checkpoint: Annotated[str, typer.Option(help="best, last, or a step.")] = "best",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Score a trained model: each character once, in consecutive windows of the block size.

    For example: charlm eval --split val --json
    """
    from charlm.storage import find_run

    found = find_run(run)
    limit = found.read_config([f"run.device={device}"]).model.block_size
    if block_size is not None and block_size > limit:
        raise UsageError(
            f"--block-size {block_size}: this model looks at most at {limit} characters"
        )

    with StopSignals() as stop, tempfile.TemporaryDirectory(prefix="charlm-") as scratch:
        try:
            with stop.at_once():
                from charlm.models.saved import load_model

                saved = load_model(found, checkpoint, device)
                ids = _split(saved, split) if file is None else _given(saved, file, Path(scratch))
            score = _score(saved, ids, block_size or limit, stop)
        except Stopped:
            return stop.exit_code
    if json:
        output.result_json(
            {
                "split": file or split,
                "protocol": "windows",
                "chars": score.chars,
                "loss_nats": score.loss_nats,
                "bits_per_char": score.bits_per_char,
                "perplexity": score.perplexity,
                "run": str(found.path),
                "step": saved.step,
            }
        )
        return 0
    unit = "byte" if saved.config.data.unit == "bytes" else "character"
    output.result(
        f"{file or split}: {score.loss_nats:.4f} nats, {score.bits_per_char:.4f} bits a {unit}, "
        f"perplexity {score.perplexity:.3f}"
    )
    output.say(
        f"{score.chars:,} scored once in windows of {block_size or limit}, "
        f"{found.path} step {saved.step}"
    )
    return 0


def _score(saved: "SavedModel", ids: "Ids", block_size: int, stop: StopSignals) -> "Score":
    from tqdm import tqdm

    from charlm.evaluation import score_windows

    def advance(chars: int) -> None:
        stop.check()
        bar.update(chars)

    bar = tqdm(
        total=len(ids) - 1,
        desc="scoring",
        unit="char",
        unit_scale=True,
        file=sys.stderr,
        disable=None,
        leave=False,
        delay=1.0,
    )
    with bar:
        return score_windows(saved.model, ids, block_size, progress=advance)


def _split(saved: "SavedModel", name: str) -> "Ids":
    from charlm.text import open_corpus

    part = open_corpus(saved.run.tokens).splits[name]
    if len(part) < 2:
        raise DataError(
            f"{saved.run.path}: its {name} part has {len(part)} characters; it was made with "
            f"data.{name}_fraction {getattr(saved.config.data, f'{name}_fraction', 0)}"
        )
    return part


def _given(saved: "SavedModel", file: str, scratch: Path) -> "Ids":
    """Encode a text with the run's alphabet; a character without an id is refused, not dropped."""
    from charlm.text import encode_corpus, open_source, scan_text

    if not file:
        raise UsageError("--file: expected a file, folder, glob, name or -, got an empty name")
    data = saved.config.data.model_copy(
        update={"source": file, "val_fraction": 0.0, "test_fraction": 0.0}
    )
    progress = output.bytes_bar(quiet=False)
    source = open_source(file)
    scan = scan_text(source, data, lambda read: progress("reading", read))
    for remark in scan.notes:
        output.note(remark)
    if scan.size < 2:
        raise DataError(f"{file}: one character cannot be scored: there is none before it")
    corpus = encode_corpus(
        source,
        data,
        scan,
        saved.tokenizer,
        scratch / "tokens",
        lambda read: progress("encoding", read),
    )
    return corpus.splits["train"]
