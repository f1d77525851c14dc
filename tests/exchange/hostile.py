"""Broken, foreign and hostile files, each with the command that would import it. All are harmless to Python.

Run as a program in an empty folder, it imports each and prints what that took and did, as JSON.
"""

import io
import json
import math
import os
import pickle
import resource
import struct
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import torch

from tests.exchange.theirs import Transformer

SIZES = {"n_layer": 1, "n_head": 2, "n_embd": 4, "block_size": 4}
PROTOCOL_2 = b"\x80\x02"
WATCHED = ("exec", "os.system", "os.mkdir", "os.remove", "subprocess.", "socket.", "ctypes.")


def nanogpt(**changes):
    """Return the content of a good checkpoint, with other keys."""
    torch.manual_seed(0)
    content = {"model": Transformer(3, **SIZES).state_dict(), "iter_num": 1}
    content["model_args"] = {**SIZES, "vocab_size": 3, "bias": False}
    return content | changes


def arguments(**changes):
    return nanogpt(model_args={**SIZES, "vocab_size": 3, **changes})


def state(**changes):
    """Return a good checkpoint with other tensors; None: left out."""
    found = nanogpt()
    for name, tensor in changes.items():
        found["model"].pop(name.replace("__", "."), None)
        if tensor is not None:
            found["model"][name.replace("__", ".")] = tensor
    return found


def saved(content, **options):
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def archive(pickled, copies=1, **options):
    """Return a file as torch writes it, with another pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", **options) as archive:
        for i in range(copies):
            archive.writestr(f"archive{i or ''}/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
    return file.getvalue()


def damaged(at, by=b"\xff"):
    data = bytearray(saved(nanogpt()))
    data[at : at + len(by)] = by
    return bytes(data)


class Trap:
    """What a hostile pickle would run."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


def asking_for(module, name, *values):
    """Return a pickle that calls a function of this name with numbers or texts."""
    pickled = b"c" + f"{module}\n{name}\n".encode() + b"("
    for value in values:
        pickled += pickle.dumps(value, 2)[2:-1]
    return PROTOCOL_2 + pickled + b"tR."


WHOLE = saved(nanogpt())
HUGE = torch.zeros(1).expand(10**6, 10**6)
SHARED = torch.zeros(64, 1024)

CHECKPOINTS = {
    "nothing": b"",
    "one byte": WHOLE[:1],
    "the first 30 bytes": WHOLE[:30],
    "the first half": WHOLE[: len(WHOLE) // 2],
    "without its last byte": WHOLE[:-1],
    "without its directory": WHOLE[:-400],
    "without its beginning": WHOLE[100:],
    "a damaged pickle": damaged(WHOLE.index(b"model_args")),
    "a damaged directory": damaged(WHOLE.rindex(b"PK\x01\x02") + 24, b"\xff" * 4),
    "a text": b"To be, or not to be\n" * 9,
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(99),
    "a plain pickle": pickle.dumps({"model": 1}),
    "an archive without a pickle": archive(b"").replace(b"data.pkl", b"data.txt"),
    "an archive with two": archive(pickle.dumps({}, 2), copies=2),
    "a compressed archive": archive(b"}" * 10**6, compression=zipfile.ZIP_DEFLATED),
    "the old form of torch": saved(nanogpt(), _use_new_zipfile_serialization=False),
    "arrays of NumPy": (lambda file: (np.savez(file, a=np.zeros(3)), file.getvalue())[1])(
        io.BytesIO()
    ),
    "safetensors": struct.pack("<Q", 2) + b"{}",
    "what makes a folder": saved({"model": Trap(os.mkdir, "trapped")}),
    "what makes a folder, as a plain pickle": pickle.dumps(Trap(os.mkdir, "trapped")),
    "what takes 4 GiB": archive(asking_for("builtins", "bytearray", 4 << 30)),
    "what torch would call": archive(asking_for("torch", "FloatTensor", 1 << 30)),
    "another module's function": archive(asking_for("os", "mkdir", "trapped")),
    "an operation of another protocol": archive(pickle.dumps([b"a" * 9], 4)),
    "lists 90,000 deep": archive(PROTOCOL_2 + b"]" * 90_000 + b"a" * 89_999 + b"."),
    "tuples 190,000 deep": archive(PROTOCOL_2 + b")" + b"\x85" * 190_000 + b"."),
    "too many operations": archive(PROTOCOL_2 + b"}" * 1_000_000 + b"."),
    "a long pickle": archive(
        PROTOCOL_2 + b"X" + struct.pack("<I", 5 << 20) + bytes(5 << 20) + b"."
    ),
    "a text that claims 4 GiB": archive(PROTOCOL_2 + b"X\xff\xff\xff\xffab."),
    "no weights": saved({}),
    "a list": saved([1, 2]),
    "one tensor": saved(torch.zeros(3)),
    "numbers for names": saved({1: torch.zeros(2)}),
    "a text for weights": saved(nanogpt(model="abc")),
    "a text for a tensor": saved(state(transformer__wpe__weight="abc")),
    "integers for weights": saved(state(transformer__wpe__weight=torch.zeros(4, 4).long())),
    "a tensor that claims terabytes": saved(state(transformer__wpe__weight=HUGE)),
    "tensors that share their memory": saved({f"a{i}": SHARED[:] for i in range(999)}),
    "a tensor of another shape": saved(state(transformer__wte__weight=torch.zeros(3, 5))),
    "a tensor of one dimension": saved(state(transformer__wte__weight=torch.zeros(12))),
    "an empty tensor": saved(state(transformer__wte__weight=torch.zeros(0, 4))),
    "a tensor that lacks": saved(state(transformer__h__0__ln_2__weight=None)),
    "a tensor too many": saved(state(transformer__h__0__ln_9__weight=torch.zeros(4))),
    "a block without a number": saved(state(transformer__h__x__ln_1__weight=torch.zeros(4))),
    "a weight that is no number": saved(
        state(transformer__wpe__weight=torch.full((4, 4), math.nan))
    ),
    "no sizes": saved(nanogpt(model_args=None)),
    "heads that do not divide": saved(arguments(n_head=3)),
    "heads below zero": saved(arguments(n_head=-1)),
    "heads without end": saved(arguments(n_head=10**30)),
    "a million layers": saved(arguments(n_layer=10**6)),
    "steps in words": saved(nanogpt(iter_num="many")),
}

METAS = {
    "nothing": b"",
    "a text": b"alphabet",
    "what makes a folder": pickle.dumps(Trap(os.mkdir, "trapped")),
    "cut off": pickle.dumps({"itos": {0: "a", 1: "b", 2: "c"}})[:-9],
    "a list": pickle.dumps({"itos": ["a", "b", "c"]}),
    "another dictionary": pickle.dumps({"stoi": {}}),
    "dictionaries 60,000 deep": PROTOCOL_2
    + b"}"
    + b"X\x01\0\0\0a}" * 60_000
    + b"s" * 60_000
    + b".",
    "a memory of everything": b"\x80\x04}" + b"\x94" * 1_000_000 + b".",
    "marks without end": PROTOCOL_2 + b"}" + b"(u" * 90_000 + b".",
    "bytes that claim 8 EiB": b"\x80\x05\x8e" + b"\xff" * 7 + b"\x7f.",
    "numbers of one hash": PROTOCOL_2
    + b"}("
    + b"".join(b"\x8a\x10" + ((2**61 - 1) * i).to_bytes(16, "little") + b"K\0" for i in range(9999))
    + b"u.",
    "5 MB": bytes(5_000_000),
}

CONFIGS = {
    "nothing": b"",
    "a text": b"model",
    "a list": b"[]",
    "arrays 100,000 deep": b"[" * 100_000,
    "objects 100,000 deep": b'{"model":' * 100_000,
    "2 MB": b'{"model": "' + b"a" * 2_000_000 + b'"}',
    "a list for a model": b'{"model": []}',
    "an unknown model": b'{"model": {"model_type": "gpt-9"}}',
    "a model type of another type": b'{"model": {"model_type": {}}}',
    "heads without end": b'{"model": {"n_head": 1' + b"0" * 4000 + b"}}",
    "heads of zero": b'{"model": {"n_head": 0}}',
    "half a surrogate": b'{"model": {"model_type": "\\ud800"}}',
    "no UTF-8": b'{"model": "\xff"}',
}

CASES = {
    **{f"ckpt.pt: {name}": ("ckpt.pt", data) for name, data in CHECKPOINTS.items()},
    **{f"meta.pkl: {name}": ("meta.pkl", data) for name, data in METAS.items()},
    **{f"config.json: {name}": ("config.json", data) for name, data in CONFIGS.items()},
    "model.pt: a table that is not square": ("model.pt", saved({"logits": torch.zeros(4, 3)})),
    "model.pt: of no program": ("model.pt", saved({"fc.weight": torch.zeros(4, 3)})),
}


def prepare(name, data):
    """Write a file into the folder beside good ones; return the options that import it."""
    Path("text.txt").write_text("abc")
    Path("ckpt.pt").write_bytes(WHOLE)
    Path("meta.pkl").write_bytes(pickle.dumps({"itos": {0: "a", 1: "b", 2: "c"}}))
    if name == "config.json":
        torch.manual_seed(0)
        torch.save(Transformer(3, **SIZES, old=True).state_dict(), "model.pt")
    Path(name).write_bytes(data)
    if name == "ckpt.pt":
        return {"file": "ckpt.pt", "meta": "meta.pkl"}
    if name == "meta.pkl":
        return {"file": "ckpt.pt", "meta": "meta.pkl"}
    return {"file": "model.pt", "text": "text.txt"}


def main():
    """Import each file; print peak memory in MiB, the longest in seconds, and what was done."""
    import encodings.cp437  # noqa: F401  # of names in archives

    from charlm.errors import CheckpointError
    from charlm.exchange.importing import import_checkpoint

    done, listening = [], []

    def hook(event, arguments):
        if listening and (event.startswith(WATCHED) or (event == "open" and arguments[2] & 3 != 0)):
            done.append([event, str(arguments)[:99]])

    sys.addaudithook(hook)

    def run(name, data):
        options = {key: Path(value) for key, value in prepare(name, data).items()}
        listening.append(name)
        begun = time.process_time()
        try:
            import_checkpoint(out=Path("run"), **options)
        finally:
            listening.clear()
            taken.append(time.process_time() - begun)

    taken = []
    run("ckpt.pt", WHOLE)  # loads what reading needs
    done.clear()
    taken.clear()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, data in CASES.values():
        try:
            run(name, data)
        except CheckpointError:
            continue
        raise AssertionError("a broken file was imported")
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        json.dumps(
            {"before": before >> 10, "after": after >> 10, "longest": max(taken), "done": done}
        )
    )


if __name__ == "__main__":
    main()
