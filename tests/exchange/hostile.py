"""Broken, foreign and hostile files, each with the command that would import it. All are harmless to Python.

Run as a program in an empty folder, it imports each and prints what that took and did, as JSON.
"""

import contextlib
import functools
import io
import json
import math
import os
import pickle
import resource
import shutil
import struct
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import torch

from tests.exchange.theirs import Recurrent, Transformer

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


def commented(data):
    """Return an archive with a comment at its end."""
    file = io.BytesIO(data)
    with zipfile.ZipFile(file, "a") as archive:
        archive.comment = b"a comment"
    return file.getvalue()


def archive(pickled, copies=1, also=None, **options):
    """Return a file as torch writes it, with another pickle; `also`: the name of a second part of it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", **options) as archive:
        for i in range(copies):
            archive.writestr(f"archive{i or ''}/data.pkl", pickled)
        if also:
            archive.writestr(f"archive/{also}", pickled)
        archive.writestr("archive/version", "3\n")
    return file.getvalue()


def damaged(at, by=b"\xff"):
    data = bytearray(whole())
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


@functools.cache
def whole():
    """Return a good checkpoint."""
    return saved(nanogpt())


def arrays():
    file = io.BytesIO()
    np.savez(file, a=np.zeros(3))
    return file.getvalue()


def sharing(count):
    """Return many tensors of the same memory."""
    one = torch.zeros(64, 1024)
    return {f"a{i}": one[:] for i in range(count)}


def recurrent(**changes):
    """Return the tensors of an rnn of makemore's, with others."""
    return Recurrent(4, 2, 3, gru=False).state_dict() | changes


CHECKPOINTS = {
    "nothing": lambda: b"",
    "one byte": lambda: whole()[:1],
    "the first 30 bytes": lambda: whole()[:30],
    "the first half": lambda: whole()[: len(whole()) // 2],
    "without its last byte": lambda: whole()[:-1],
    "without its directory": lambda: whole()[:-400],
    "without its beginning": lambda: whole()[100:],
    "a damaged pickle": lambda: damaged(whole().index(b"model_args")),
    "a damaged directory": lambda: damaged(whole().rindex(b"PK\x01\x02") + 24, b"\xff" * 4),
    "bytes before its beginning": lambda: b"more" * 25 + whole(),
    "a comment after its end": lambda: commented(whole()),
    "two parts whose names differ in case": lambda: archive(pickle.dumps({}, 2), also="DATA.PKL"),
    "a head that claims 80 GB": lambda: saved(
        state(lm_head__weight=torch.zeros(1).half().expand(200_000, 200_000))
    ),
    "a text": lambda: b"To be, or not to be\n" * 9,
    "a picture": lambda: b"\x89PNG\r\n\x1a\n" + bytes(99),
    "a plain pickle": lambda: pickle.dumps({"model": 1}),
    "an archive without a pickle": lambda: archive(b"").replace(b"data.pkl", b"data.txt"),
    "an archive with two": lambda: archive(pickle.dumps({}, 2), copies=2),
    "a compressed archive": lambda: archive(b"}" * 10**6, compression=zipfile.ZIP_DEFLATED),
    "the old form of torch": lambda: saved(nanogpt(), _use_new_zipfile_serialization=False),
    "arrays of NumPy": arrays,
    "safetensors": lambda: struct.pack("<Q", 2) + b"{}",
    "what makes a folder": lambda: saved({"model": Trap(os.mkdir, "trapped")}),
    "what makes a folder, as a plain pickle": lambda: pickle.dumps(Trap(os.mkdir, "trapped")),
    "what takes 4 GiB": lambda: archive(asking_for("builtins", "bytearray", 4 << 30)),
    "what torch would call": lambda: archive(asking_for("torch", "FloatTensor", 1 << 30)),
    "another module's function": lambda: archive(asking_for("os", "mkdir", "trapped")),
    "an operation of another protocol": lambda: archive(pickle.dumps([b"a" * 9], 4)),
    "lists 90,000 deep": lambda: archive(PROTOCOL_2 + b"]" * 90_000 + b"a" * 89_999 + b"."),
    "tuples 190,000 deep": lambda: archive(PROTOCOL_2 + b")" + b"\x85" * 190_000 + b"."),
    "too many operations": lambda: archive(PROTOCOL_2 + b"}" * 1_000_000 + b"."),
    "a long pickle": lambda: archive(
        PROTOCOL_2 + b"X" + struct.pack("<I", 5 << 20) + bytes(5 << 20) + b"."
    ),
    "a text that claims 4 GiB": lambda: archive(PROTOCOL_2 + b"X\xff\xff\xff\xffab."),
    "no weights": lambda: saved({}),
    "a list": lambda: saved([1, 2]),
    "one tensor": lambda: saved(torch.zeros(3)),
    "numbers for names": lambda: saved({1: torch.zeros(2)}),
    "a text for weights": lambda: saved(nanogpt(model="abc")),
    "a text for a tensor": lambda: saved(state(transformer__wpe__weight="abc")),
    "integers for weights": lambda: saved(state(transformer__wpe__weight=torch.zeros(4, 4).long())),
    "a tensor that claims terabytes": lambda: saved(
        state(transformer__wpe__weight=torch.zeros(1).expand(10**6, 10**6))
    ),
    "tensors that share their memory": lambda: saved(sharing(999)),
    "a tensor of another shape": lambda: saved(state(transformer__wte__weight=torch.zeros(3, 5))),
    "a tensor of one dimension": lambda: saved(state(transformer__wte__weight=torch.zeros(12))),
    "a width without end": lambda: saved(state(transformer__wte__weight=torch.zeros(3, 200_000))),
    "an empty tensor": lambda: saved(state(transformer__wte__weight=torch.zeros(0, 4))),
    "a tensor that lacks": lambda: saved(state(transformer__h__0__ln_2__weight=None)),
    "a tensor too many": lambda: saved(state(transformer__h__0__ln_9__weight=torch.zeros(4))),
    "a block without a number": lambda: saved(
        state(transformer__h__x__ln_1__weight=torch.zeros(4))
    ),
    "a weight that is no number": lambda: saved(
        state(transformer__wpe__weight=torch.full((4, 4), math.nan))
    ),
    "no sizes": lambda: saved(nanogpt(model_args=None)),
    "heads that do not divide": lambda: saved(arguments(n_head=3)),
    "heads below zero": lambda: saved(arguments(n_head=-1)),
    "heads without end": lambda: saved(arguments(n_head=10**30)),
    "a million layers": lambda: saved(arguments(n_layer=10**6)),
    "steps in words": lambda: saved(nanogpt(iter_num="many")),
}

METAS = {
    "nothing": lambda: b"",
    "a text": lambda: b"alphabet",
    "what makes a folder": lambda: pickle.dumps(Trap(os.mkdir, "trapped")),
    "cut off": lambda: pickle.dumps({"itos": {0: "a", 1: "b", 2: "c"}})[:-9],
    "a list": lambda: pickle.dumps({"itos": ["a", "b", "c"]}),
    "another dictionary": lambda: pickle.dumps({"stoi": {}}),
    "dictionaries 60,000 deep": lambda: (
        PROTOCOL_2 + b"}" + b"X\x01\0\0\0a}" * 60_000 + b"s" * 60_000 + b"."
    ),
    "a memory of everything": lambda: b"\x80\x04}" + b"\x94" * 3_000_000 + b".",
    "marks without end": lambda: PROTOCOL_2 + b"}" + b"(u" * 90_000 + b".",
    "bytes that claim 8 EiB": lambda: b"\x80\x05\x8e" + b"\xff" * 7 + b"\x7f.",
    "numbers of one hash": lambda: (
        PROTOCOL_2
        + b"}("
        + b"".join(
            b"\x8a\x10" + ((2**61 - 1) * i).to_bytes(16, "little") + b"K\0" for i in range(9999)
        )
        + b"u."
    ),
    "5 MB": lambda: bytes(5_000_000),
}

CONFIGS = {
    "nothing": lambda: b"",
    "a text": lambda: b"model",
    "a list": lambda: b"[]",
    "arrays 100,000 deep": lambda: b"[" * 100_000,
    "objects 100,000 deep": lambda: b'{"model":' * 100_000,
    "2 MB": lambda: b'{"model": "' + b"a" * 2_000_000 + b'"}',
    "a list for a model": lambda: b'{"model": []}',
    "an unknown model": lambda: b'{"model": {"model_type": "gpt-9"}}',
    "a model type of another type": lambda: b'{"model": {"model_type": {}}}',
    "heads without end": lambda: b'{"model": {"n_head": 1' + b"0" * 4000 + b"}}",
    "heads of zero": lambda: b'{"model": {"n_head": 0}}',
    "half a surrogate": lambda: b'{"model": {"model_type": "\\ud800"}}',
    "no UTF-8": lambda: b'{"model": "\xff"}',
}

OTHERS = {
    "a table that is not square": lambda: saved({"logits": torch.zeros(4, 3)}),
    "of no program": lambda: saved({"fc.weight": torch.zeros(4, 3)}),
    "a state without end": lambda: saved(recurrent(start=torch.zeros(1, 200_000))),
    "weights of another width": lambda: saved(recurrent(**{"wte.weight": torch.zeros(4, 5)})),
    "a bias that is one number": lambda: saved(recurrent(**{"cell.xh_to_h.bias": torch.zeros(())})),
    "a layer too many": lambda: saved(recurrent(**{"cell.xh_to_o.bias": torch.zeros(3)})),
    "an MLP that reads half a character": lambda: saved(
        {"wte.weight": torch.zeros(5, 4), "mlp.0.weight": torch.zeros(3, 6)}
    ),
}

KINDS = {"ckpt.pt": CHECKPOINTS, "meta.pkl": METAS, "config.json": CONFIGS, "model.pt": OTHERS}
CASES = {
    f"{file}: {name}": (file, made) for file, kind in KINDS.items() for name, made in kind.items()
}


def prepare(name, data):
    """Write a file into the folder beside good ones; return the command that imports it."""
    Path("text.txt").write_text("abc")
    Path("ckpt.pt").write_bytes(whole())
    Path("meta.pkl").write_bytes(pickle.dumps({"itos": {0: "a", 1: "b", 2: "c"}}))
    if name == "config.json":
        torch.manual_seed(0)
        torch.save(Transformer(3, **SIZES, old=True).state_dict(), "model.pt")
    Path(name).write_bytes(data)
    if name in ("ckpt.pt", "meta.pkl"):
        return ["import", "ckpt.pt", "--meta", "meta.pkl", "--out", "run"]
    return ["import", "model.pt", "--text", "text.txt", "--out", "run"]


def main():
    """Import each file; print what it did, how long it took (seconds), and the peak memory (MiB)."""
    import encodings.cp437  # noqa: F401  # of names in archives

    from charlm.cli.main import run

    done, listening, told = [], [], {}

    def hook(event, arguments):
        if listening and (event.startswith(WATCHED) or (event == "open" and arguments[2] & 3 != 0)):
            done.append([event, str(arguments)[:99]])

    def imported(name, data):
        command, out, errors = prepare(name, data), io.StringIO(), io.StringIO()
        done.clear()
        listening.append(name)
        begun = time.process_time()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            code = run(command)
        taken = time.process_time() - begun
        listening.clear()
        found = {"code": code, "stdout": out.getvalue(), "stderr": errors.getvalue()}
        return found | {"seconds": taken, "done": list(done)}

    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10

    sys.addaudithook(hook)
    told["good"] = imported("ckpt.pt", whole())  # loads what reading needs
    shutil.rmtree("run")
    before = peak()
    for case, (name, made) in CASES.items():
        told[case] = imported(name, made())
    left = sorted(path.name for path in Path().iterdir())
    print(json.dumps({"cases": told, "before": before, "after": peak(), "left": left}))


if __name__ == "__main__":
    main()
