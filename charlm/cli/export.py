"""charlm export: a model for others, without the text that it learned from."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from charlm.cli import output
from charlm.cli.options import A_RUN, Checkpoint, Json
from charlm.cli.signals import StopSignals, load_torch


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run.", **A_RUN)],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write.")],
    form: Annotated[
        Literal["charlm", "hf", "onnx", "gguf", "npz"],
        typer.Option("--to", help="Form; hf takes most GPTs, gguf those of style gpt2."),
    ] = "charlm",
    checkpoint: Checkpoint = "best",
    json: Json = False,
) -> None:
    """Write a model to a folder to share: no text, no optimizer.

    The folder has the weights, the alphabet, the configuration and a model card. Before it is put in
    place, it is read again, and its logits are compared with the run's. Forms: charlm's own, Hugging
    Face's, ONNX graphs, a GGUF file for llama.cpp, and NumPy arrays.

    For example: charlm export runs/gpt shared --to npz
    """
    load_torch()
    with StopSignals() as stop, stop.at_once():
        from charlm.config.memory import human_bytes
        from charlm.exchange import export as write
        from charlm.runs import find_run
        from charlm.runs.load import load_model

        saved = load_model(find_run(run), checkpoint, "cpu")
        done = write(saved, out, form)
    if json:
        found = {
            "folder": str(out),
            "form": form,
            "bytes": done.bytes,
            "difference": done.difference,
        }
        found |= {"holds_text": done.holds_text}
        output.result_json(found)
        return
    output.result(f"{out}: {human_bytes(done.bytes)}, form {form}, step {saved.step:,} of {run}")
    if done.holds_text:
        output.note("models of this kind hold the text that they counted, so this export does, too")
    same = "equal" if not done.difference else f"within {done.difference:.1e}"
    output.say(f"checked: logits {same}; say in {out}/README.md what license it has")
