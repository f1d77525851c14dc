"""What it means that a hostile input was answered, one function for each kind of input.

Each takes bytes, gives them to charlm as whoever wrote a file or a command would, and returns if
they were read or refused as promised; anything else leaves it as an exception. The property tests
beside this file and `scripts/fuzz` call the same functions, so both mean the same. They work in the
current folder.
"""

import bz2
import contextlib
import gzip
import io
import json
import lzma
import math
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from charlm.errors import CharlmError, CheckpointError, DataError, MachineError, UsageError

LINE_BREAKS = "\n\v\f\r\x1c\x1d\x1e\x85\u2028\u2029"
CONTROLS = {chr(c) for c in [*range(32), *range(127, 160)]}
# What ends a line, turns it round or hides in it without being a control character.
TURNS = {chr(c) for c in [*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x2028, 0x2029]}
TURNS |= {*"\u200e\u200f\u061c\u00ad\ufeff\u2060\u3164", *map(chr, range(0xE0000, 0xE0080))}
HALVES = {chr(c) for c in range(0xD800, 0xE000)}


@dataclass(frozen=True)
class Target:
    """One kind of input.

    Args:
        answer: Gives it to charlm.
        seeds: Returns some that are valid, or nearly so, to begin with.
        words: What is worth trying in it.
    """

    answer: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]
    words: tuple[str, ...] = ()


TARGETS: dict[str, Target] = {}


def target(seeds: Callable[[], list[bytes]], *words: str) -> Callable[[Any], Any]:
    """Make a target of a function."""

    def keep(answer: Callable[[bytes], None]) -> Callable[[bytes], None]:
        TARGETS[answer.__name__] = Target(answer, seeds, words)
        return answer

    return keep


@contextlib.contextmanager
def refused_in_one_line_each(*kinds: type[CharlmError]) -> Iterator[None]:
    """Let the block succeed, or be refused by an error of these kinds; nothing else passes."""
    problems: list[str] | None = None
    try:
        yield
    except kinds as error:
        problems = error.lines()
    assert problems is None or all(problems), "refused without a word"
    for problem in problems or ():
        assert not set(problem) & set(LINE_BREAKS), f"more than one line: {problem!r}"


def folder(name: str) -> Path:
    """Return an empty folder of this name."""
    path = Path(name)
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    return path


def vouched(path: Path, **facts: Any) -> None:
    """Write a manifest that vouches for what a folder holds, as whoever made it up would."""
    from charlm.storage.manifest import write_manifest

    write_manifest(path, facts)


def unsealed(path: Path) -> bytes:
    """Return the manifest of a folder without its own SHA-256, by which any change would show."""
    content = json.loads((path / "MANIFEST.json").read_bytes())
    content["files"].pop("MANIFEST.json", None)
    return json.dumps(content, indent=1).encode()


# ---------------------------------------------------------------------------- configurations

CONFIG = """\
# a remark
data: {source: text.txt, val_fraction: 0.1, encoding: utf-8}
model: &m
  type: gpt
  style: modern
  block_size: 8
  n_layer: 2
  n_head: 2
  n_embd: 16
  dropout: 1e-1
train:
  max_steps: 6
  learning_rate: 1e-3
  minutes: null
run: {device: cpu, seed: 1, compile: no}
sample:
  prompt: "a\\x1b\\u2028 \\U0001F600"
"""

MIXTURE = """\
model:
  type: mixture
  combine: linear
  experts:
    counts: {model: {type: ngram, order: 5}}
    net:
      model: {type: gpt, n_layer: 2, n_head: 2, n_embd: 16}
      train: {max_steps: 10}
    old: {run: runs/old}
"""


def _configurations() -> list[bytes]:
    return [text.encode() for text in (CONFIG, MIXTURE, "model: {type: bigram}", "a: [&x b, *x]")]


@target(_configurations, "type:", "mixture", "experts:", "!!python/object:", "<<: *m", "&a", "null")
def config(data: bytes) -> None:
    """Read a configuration; one that is taken is read back equal from what is written of it."""
    from charlm.config import dump_yaml, read_config

    with refused_in_one_line_each(UsageError):
        read = read_config(data, "a.yaml")
        assert read_config(dump_yaml(read.model_dump()).encode(), "b.yaml") == read


def _overrides() -> list[bytes]:
    return [
        b"\0train.max_steps=5\ntrain.minutes=null",
        b"\1model.experts.counts.model.order=3\nmodel.experts.new.model.type=bigram",
        b"\1model.experts.new.model=yes\nmodel.experts.net.train.max_steps=1",
        b"\1train=3\nmodel.experts.net=x\nmodel=no",
        b"\2model.type=gpt\nlr=1e-3\nrun.device=cuda:0",
        b"\3model.n_embd=15",
    ]


@target(_overrides, "model.experts.", "model.type=", ".train.", "mixture", "=null", "run.")
def overrides(data: bytes) -> None:
    """Apply KEY=VALUE arguments, one a line, to the configuration that the first byte chooses."""
    from charlm.config import dump_yaml, read_config

    bases = [*_configurations()[:3], b"model:\ntrain: 3"]
    base = bases[data[0] % len(bases)] if data else bases[0]
    given = data[1:].decode("utf-8", "surrogateescape").split("\n")
    with refused_in_one_line_each(UsageError):
        read = read_config(base, "a.yaml", given)
        assert read_config(dump_yaml(read.model_dump()).encode(), "b.yaml") == read


# ---------------------------------------------------------------------------- folders and JSON


def _manifests() -> list[bytes]:
    place = folder("seeds")
    (place / "a.bin").write_bytes(b"abc")
    belongs = {"model": {"type": "bigram"}, "alphabet_sha256": "0" * 64}
    facts: dict[str, Any] = {"environment": {"torch": "2"}, "belongs": belongs}
    vouched(place, step=7, val_loss_nats=1.5, kind="checkpoint", **facts)
    good = unsealed(place)
    names = ("../a.bin", "..", "", "a\\u0000b", "\\ud800", "a\\n", "x" * 300)
    return [good, *(good.replace(b"a.bin", name.encode()) for name in names)]


@target(_manifests, '"files"', '"format"', '"size"', '"sha256"', "NaN", "1e999", "null")
def manifest(data: bytes) -> None:
    """Verify a folder by its MANIFEST.json, and find and judge the checkpoint that it makes."""
    from charlm.config import read_config
    from charlm.runs import RunFolder
    from charlm.runs.provenance import provenance_of
    from charlm.runs.state import drift
    from charlm.runs.verify import verify
    from charlm.storage import verify_folder

    read, known = read_config(b"model: {type: bigram}", "a.yaml"), _tokenizers_of_prompts()[0]

    run = RunFolder(folder("run"))
    place = run.checkpoints.path(7)
    place.mkdir(parents=True)
    (place / "a.bin").write_bytes(b"abc")
    (place / "MANIFEST.json").write_bytes(data)
    with refused_in_one_line_each(CheckpointError):
        found = verify_folder(place)
        assert found["files"]["a.bin"]["size"] == 3
        assert found["files"].keys() == {"a.bin"}
    (checked,) = verify(place)
    assert checked.says or checked.problem
    for checkpoint in run.checkpoints.all():
        loss = checkpoint.loss
        assert loss is None or math.isfinite(loss)
        assert all(isinstance(change, str) for change in drift(checkpoint, read))
        with refused_in_one_line_each(CheckpointError):
            provenance_of(checkpoint).check(read, known.to_json())
    run.checkpoints.best()


def _belongings() -> list[bytes]:
    from charlm.config import read_config
    from charlm.runs.provenance import provenance_json

    mixture = b"model: {type: mixture, experts: {run: {model: {type: bigram}}}}"
    return [
        *(
            provenance_json(read_config(config, "a.yaml"), "an alphabet")
            for config in (b"model: {type: bigram}", mixture)
        ),
        b'{"config": {"model": {"experts": {"a": {"experts": []}, "b": 3}}}}',
        b'{"alphabet_sha256": 3, "config": {"model": []}}',
    ]


@target(_belongings, '"alphabet_sha256"', '"config"', '"model"', '"experts"', '"run"', "null")
def belongings(data: bytes) -> None:
    """Hold a configuration and an alphabet against what a belongs.json says."""
    from charlm.config import read_config
    from charlm.runs import RunFolder
    from charlm.runs.provenance import PROVENANCE, provenance_of_unjoined

    run = RunFolder(folder("run"))
    (run.path / PROVENANCE).write_bytes(data)
    read = read_config(b"model: {type: bigram}", "a.yaml")
    with refused_in_one_line_each(CheckpointError):
        provenance_of_unjoined(run).check(read, "an alphabet")
    with refused_in_one_line_each(CheckpointError):
        provenance_of_unjoined(run).differences(read, read)


def _tokenizers() -> list[bytes]:
    from charlm.text import ByteTokenizer, CharTokenizer

    alphabets = ("\n abc", "\0\x1b\ud800é😀")
    return [
        ByteTokenizer().to_json().encode(),
        *(CharTokenizer(alphabet).to_json().encode() for alphabet in alphabets),
        b'{"format": 1, "unit": "chars", "alphabet": ["a", "b"]}',
    ]


@target(_tokenizers, '"format"', '"unit"', '"alphabet"', '"chars"', '"bytes"', "\\ud800")
def tokenizer(data: bytes) -> None:
    """Load a tokenizer.json; one that loads encodes what it decodes, and is written down equal."""
    from charlm.text.tokenizer import load_tokenizer

    path = Path("tokenizer.json")
    path.write_bytes(data)
    with refused_in_one_line_each(CheckpointError):
        loaded = load_tokenizer(path)
        assert loaded.vocab_size > 0
        if loaded.unit == "chars":
            ids = range(loaded.vocab_size)
            assert loaded.encode(loaded.decode(ids)).tolist() == list(ids)
        path.write_text(loaded.to_json(), encoding="utf-8")
        assert load_tokenizer(path).to_json() == loaded.to_json()


IDS = bytes([0, 1, 2, 3, 2, 1, 0, 1, 2, 3, 3, 3])
CORPUS = {
    "kind": "tokens",
    "source": "text.txt",
    "source_sha256": "0" * 64,
    "unit": "chars",
    "size": len(IDS),
    "vocab_size": 4,
    "dtype": "|u1",
    "splits": {"train": [0, 8], "val": [8, 12], "test": [12, 12]},
}


def _corpora() -> list[bytes]:
    changes: list[dict[str, Any]] = [
        {},
        {"dtype": "<u2", "size": 6, "vocab_size": 65536, "splits": {"train": [0, 6]}},
        {"dtype": "O"},
        {"dtype": "V0", "size": 0},
        {"dtype": "<f4", "size": 3},
        {"dtype": {"names": ["a"], "formats": ["u1"]}},
        {"splits": {"train": [8, 0], "val": [-1, 12], "test": [0, 99]}},
        {"vocab_size": 3},
        {"size": "12"},
    ]
    seeds = []
    for change in changes:
        place = folder("seeds")
        (place / "ids.bin").write_bytes(IDS)
        vouched(place, **(CORPUS | change))
        seeds.append(unsealed(place))
    return seeds


@target(_corpora, '"dtype"', '"size"', '"splits"', '"train"', '"vocab_size"', '"<u4"', "1e999")
def corpus(data: bytes) -> None:
    """Open ids by their MANIFEST.json; what opens can be read whole, and holds ids alone."""
    place = folder("tokens")
    (place / "ids.bin").write_bytes(IDS)
    (place / "MANIFEST.json").write_bytes(data)
    _open(place)


@target(lambda: [IDS, IDS[:-1], IDS + b"\0", b"\4" * 12, b""])
def ids(data: bytes) -> None:
    """Open ids of any content and length behind a manifest that vouches for them."""
    place = folder("tokens")
    (place / "ids.bin").write_bytes(data)
    vouched(place, **CORPUS)
    _open(place)


def _open(place: Path) -> None:
    from charlm.text import open_corpus

    with refused_in_one_line_each(CheckpointError, DataError):
        opened = open_corpus(place)
        assert opened.splits.keys() == {"train", "val", "test"}
        for split in opened.splits.values():
            read = split.read(0, len(split))
            assert len(read) == len(split)
            assert not len(read) or 0 <= read.min() <= read.max() < opened.facts["vocab_size"]
        assert {"source", "source_sha256", "unit"} <= opened.facts.keys()


# ---------------------------------------------------------------------------- checkpoints


def _small(kind: str) -> Any:
    """Return a tiny model of a kind, its weights drawn from a seed."""
    from charlm.config import read_config
    from charlm.models import build_model

    texts = {
        "gpt": "{type: gpt, block_size: 4, n_layer: 1, n_head: 1, n_embd: 4}",
        "ngram": "{type: ngram, order: 2}",
        "mixture": "{type: mixture, experts: {a: {model: {type: bigram}}, "
        "b: {model: {type: ngram, order: 2}}}}",
    }
    read = read_config(f"model: {texts.get(kind, '{type: bigram}')}".encode(), kind)
    return build_model(read.model, 4).eval(), read


def _states() -> list[bytes]:
    from dataclasses import asdict

    from charlm.runs.state import TrainingState

    good = asdict(TrainingState(step=3, seconds=1.5, val_loss_nats=2.0))
    changes: list[dict[str, Any]] = [
        {},
        {"step": "3"},
        {"seconds": None},
        {"metrics_bytes": -1},
        {"best_loss_nats": float("nan")},
        {"step": 10**400},
    ]
    return [json.dumps(good | change).encode() for change in changes]


@target(_states, '"step"', '"seconds"', '"metrics_bytes"', "null", "NaN", "1e999", "true")
def state(data: bytes) -> None:
    """Load a checkpoint with this state.json; one that loads can be gone on from."""
    from charlm.runs.state import TrainingState, load_checkpoint

    checkpoint, model, optimizers = _checkpoint()
    (checkpoint.path / "state.json").write_bytes(data)
    vouched(checkpoint.path, step=3)
    with refused_in_one_line_each(CheckpointError):
        loaded = load_checkpoint(checkpoint, model, optimizers)
        for field in fields(TrainingState):
            value = getattr(loaded, field.name)
            if field.name.endswith("nats"):
                assert value is None or type(value) is float, field.name
            elif field.name in ("seconds", "rate_factor", "before"):
                assert type(value) is float
                assert math.isfinite(value)
            else:
                assert type(value) is int
                assert -1 <= value < 2**63
        assert min(loaded.step, loaded.metrics_bytes, loaded.seconds, loaded.skipped) >= 0
        assert loaded.rate_factor > 0


def _checkpoint() -> Any:
    """Return a checkpoint of a bigram without its manifest, the model and its optimizers."""
    import torch

    from charlm.runs.checkpoints import Checkpoint
    from charlm.runs.optimizer_state import optimizer_tensors
    from charlm.runs.weights import save_tensors, save_weights
    from charlm.training.optimizers import build_optimizers

    model, read = _small("bigram")
    optimizers = build_optimizers(model, read.train)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizers["adamw"].step()
    place = folder("step-3")
    save_weights(model, place / "model.safetensors")
    save_tensors(optimizer_tensors(optimizers, model), place / "optimizer.safetensors")
    (place / "state.json").write_bytes(_states()[0])
    return Checkpoint(place, 3, {}), model, optimizers


def safetensors(tensors: dict[str, tuple[str, list[int], bytes]], **facts: str) -> bytes:
    """Write safetensors by hand, so that tests can write what no library would."""
    header: dict[str, Any] = {"__metadata__": facts} if facts else {}
    body = b""
    for name, (dtype, shape, content) in tensors.items():
        place = [len(body), len(body) + len(content)]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": place}
        body += content
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def read_safetensors(data: bytes) -> tuple[dict[str, dict[str, Any]], bytes]:
    """Return the header and the body of safetensors that are sound, by a reader of our own."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    return header, data[8 + length :]


def _weights() -> list[bytes]:
    from charlm.runs.weights import save_tensors, save_weights

    seeds = []
    for kind in ("bigram", "gpt", "ngram", "mixture"):
        model, _ = _small(kind)
        place = folder("seeds") / "model.safetensors"
        save_weights(model, place)
        seeds.append(place.read_bytes())
    save_tensors({"table.weight": model.state_dict()["weights"].bool()}, place, {"version": "2\n"})
    return [*seeds, place.read_bytes(), b"\x80\x04.", b"PK\x03\x04"]


def _parts() -> list[bytes]:
    from safetensors.torch import save

    model, _ = _small("bigram")
    tensors = {f"model.safetensors/{name}": x for name, x in model.state_dict().items()}
    offsets = {name: {"saved_offsets": [0] * x.ndim} for name, x in tensors.items()}
    return [save(tensors, {"DCP_SHARDING_INFO": json.dumps(offsets)})]


@target(_parts, '"dtype"', '"shape"', '"data_offsets"', "saved_offsets", "[0, 0]", "[1, 0]", "[]")
def parts(data: bytes) -> None:
    """Load a model from one part, as one of several processes writes it; it fits or is refused."""
    from charlm.runs.parts import write_about
    from charlm.runs.weights import load_weights

    place = folder("parts")
    (place / "shard-00001-model-00001-of-00001.safetensors").write_bytes(data)
    write_about(place, {"model.safetensors": {"version": "1"}}, 1, {})
    model, _ = _small("bigram")
    with refused_in_one_line_each(CheckpointError):
        load_weights(model, place / "model.safetensors")


@target(_weights, '"dtype"', '"F32"', '"I64"', '"BOOL"', '"data_offsets"', '"shape"', '"keys_1"')
def weights(data: bytes) -> None:
    """Load weights into models of four kinds; what loads is the file's content, to the bit."""
    import torch

    from charlm.runs.weights import load_weights

    path = Path("model.safetensors")
    path.write_bytes(data)
    for kind in ("bigram", "gpt", "ngram", "mixture"):
        model, _ = _small(kind)
        with refused_in_one_line_each(CheckpointError):
            load_weights(model, path)
            header, body = read_safetensors(data)
            tensors = model.state_dict()
            assert tensors.keys() == header.keys()
            for name, tensor in tensors.items():
                first, last = header[name]["data_offsets"]
                assert tensor.numpy().tobytes() == body[first:last], name
                assert list(tensor.shape) == header[name]["shape"], name
            if kind == "ngram":  # of matrices, products of finite numbers may still overflow
                with torch.no_grad():
                    p = model(torch.arange(4)[None]).exp()
                assert torch.allclose(p.sum(dim=-1), torch.ones(4), atol=1e-4)


def _optimizers() -> list[bytes]:
    place = _checkpoint()[0].path
    good = (place / "optimizer.safetensors").read_bytes()
    zeros = ("F32", [4, 4], bytes(64))
    step = ("F32", [], bytes(4))
    names = [f"adamw/table.weight/{key}" for key in ("exp_avg", "exp_avg_sq", "step")]
    small = ("F32", [2], bytes(8))
    return [
        good,
        safetensors(dict(zip(names, (zeros, zeros, step), strict=True))),
        safetensors(dict(zip(names, (small, zeros, step), strict=True))),
        safetensors({names[0]: zeros}),
        safetensors({"adamw/table.weight/more": zeros}),
        safetensors({"a/b": step}),
    ]


@target(_optimizers, "adamw/", "table.weight", "/exp_avg", "/exp_avg_sq", "/step", '"F64"')
def optimizer(data: bytes) -> None:
    """Load a checkpoint with this optimizer.safetensors; one that loads takes a step."""
    import torch

    from charlm.runs.state import load_checkpoint

    checkpoint, model, optimizers = _checkpoint()
    (checkpoint.path / "optimizer.safetensors").write_bytes(data)
    vouched(checkpoint.path, step=3)
    with refused_in_one_line_each(CheckpointError):
        load_checkpoint(checkpoint, model, optimizers)
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizers["adamw"].step()


FITTED = {
    "weights": {"a": 0.5, "b": 0.5},
    "temperature": 1.0,
    "loss_nats": 1.5,
    "alone_nats": {"a": 1.75, "b": 2.0},
    "chars": 100,
    "steps": {"a": 7},
    "seconds": 1.5,
    "reserve": 0.5,
}


def _fits() -> list[bytes]:
    changes: list[dict[str, Any]] = [
        {},
        {"steps": {"a": "7"}},
        {"weights": {"a": 10**400, "b": 1}},
        {"weights": {"a": 1e300, "b": 1}},
        {"loss_nats": "1"},
        {"alone_nats": []},
        {"temperature": True},
    ]
    return [json.dumps(FITTED | change).encode() for change in changes]


@target(_fits, '"weights"', '"steps"', '"alone_nats"', "null", "NaN", "1e999", "true", "-1")
def fitted(data: bytes) -> None:
    """Read a mixture.json; what is read can be computed with."""
    import torch

    from charlm.runs.mixture import read_fitted

    path = Path("mixture.json")
    path.write_bytes(data)
    with refused_in_one_line_each(CheckpointError):
        found = read_fitted(path, ["a", "b"], {"a"})
        assert found is not None
        numbers = [*found.weights.values(), found.temperature, found.seconds, found.reserve]
        assert torch.tensor(numbers).isfinite().all()
        assert torch.tensor(found.temperature) > 0
        assert found.weights.keys() == found.alone_nats.keys() == {"a", "b"}
        assert [type(value) for value in found.alone_nats.values()] == [float, float]
        assert type(found.loss_nats) is float
        assert list(map(type, (found.chars, found.steps["a"]))) == [int, int]
        assert found.steps["a"] >= 0


def _records() -> list[bytes]:
    return [
        b'{"kind": "train", "step": 1, "loss_nats": 1.5}\n{"kind": "eval", "step": 1}\n{"cut',
        b"[]\n",
        b'{"step": NaN}\n',
        b"\n",
        b'{"step": 1}\n\xff\n',
        b"[" * 5000 + b"\n",
        b'{"step": ' + b"1" * 5000 + b"}\n",
    ]


@target(_records, '"step"', '"kind"', "NaN", "{}\n", "[\n")
def metrics(data: bytes) -> None:
    """Read a metrics.jsonl, and check it as `charlm verify` does: objects, or a refusal."""
    from charlm.runs.metrics import check_records, read_metrics

    path = Path("metrics.jsonl")
    path.write_bytes(data)
    with refused_in_one_line_each(CheckpointError):
        assert all(type(record) is dict for record in read_metrics(path))
    with refused_in_one_line_each(CheckpointError):
        check_records(path, 0)


def _ladders() -> list[bytes]:
    from charlm.evaluation import Ladder, Rung, Score
    from charlm.evaluation.ladder import keep

    rungs = (Rung("uniform", Score(9, 2.0, 9), 0.0), Rung("xz", Score(9, 1.0, 9), 1.0, True))
    path = Path("baselines.json")
    keep(Ladder(rungs, 8, 4, 99, 99, 9, 99, 3), path, {"unit": "chars"})
    return [path.read_bytes()]


@target(_ladders, '"rungs"', '"loss_nats"', '"name"', "NaN", "null", "-1", "1e400", "\\n")
def ladder(data: bytes) -> None:
    """Read a baselines.json; what is read can be shown, each of its lines as one."""
    from charlm.cli.baselines import as_json, reached, table
    from charlm.evaluation.ladder import kept

    path = Path("baselines.json")
    path.write_bytes(data)
    if found := kept(path, {"unit": "chars"}):
        for line in (*table(found, "chars"), reached(found, 1.5, "chars")):
            assert not set(line) & (set(LINE_BREAKS) | CONTROLS | TURNS)
        json.dumps(as_json(found, "chars"))


def _holders() -> list[bytes]:
    return [
        b'{"pid": 12, "host": "here", "started": 1700000000.5}',
        b'{"pid": "x\\n", "host": [], "started": 1e300}',
        b'{"pid": 1, "host": "\\u2028", "started": NaN}',
        b"[" * 5000,
    ]


@target(_holders, '"pid"', '"host"', '"started"', "1e300", "-1e12")
def holder(data: bytes) -> None:
    """Say who holds a folder's lock by what they left there, or that somebody does."""
    from charlm.storage.lock import _described

    path = Path("holder.json")
    path.write_bytes(data)
    said = _described(path) or ""
    assert isinstance(said, str)
    assert len(said) < 500
    assert not set(said) & set(LINE_BREAKS)


# ---------------------------------------------------------------------------- texts and prompts

ALPHABET = "\n abc\x1b"


def _tokenizers_of_prompts() -> list[Any]:
    from charlm.text import ByteTokenizer, CharTokenizer

    return [CharTokenizer(ALPHABET), ByteTokenizer(), CharTokenizer("x\ud800")]


ENCODINGS = ("utf-8", "utf-16", "utf-32", "latin-1", "utf-7", "cp1252", "shift_jis", "gb18030")
ENCODINGS += ("iso2022_jp", "utf-8-sig", "hz", "big5", "unicode_escape")
ENCODINGS += ("raw_unicode_escape", "cp949", "euc_jp", "ascii", "utf-16-le", "utf_32_be", "koi8-r")


def _texts() -> list[bytes]:
    text = "The quick é☃😀 fox\r\njumps\u2028"
    good = [bytes([i]) + text.encode(e, "replace") for i, e in enumerate(ENCODINGS)]
    packed = [
        gzip.compress(b"one two", mtime=0),
        bz2.compress(b"one two"),
        lzma.compress(b"one two"),
    ]
    packed += [bytes.fromhex("28b52ffd20073900006f6e652074776f")]  # of zstd
    good += [b"\0" + one for one in packed]
    return [*good, b"\0\xff\xfea\0", b"\0\xef\xbb\xbf", b"\0\x1f\x8b", b"\0\0\0", b"\4+2AA-"]


@target(_texts)
def text(data: bytes) -> None:
    """Read a text in the encoding that the first byte chooses, and as bytes."""
    from charlm.config import DataConfig
    from charlm.text import encode_corpus, open_source, scan_text

    encoding = ENCODINGS[data[0] % len(ENCODINGS)] if data else "utf-8"
    Path("text.txt").write_bytes(data[1:])
    for unit in ("chars", "bytes"):
        read = DataConfig(source="text.txt", encoding=encoding, unit=unit, max_vocab=2**21)
        with refused_in_one_line_each(DataError):
            source = open_source("text.txt")
            scan = scan_text(source, read)
            fitted = scan.tokenizer(read)
            shutil.rmtree("corpus", ignore_errors=True)
            encoded = encode_corpus(source, read, scan, fitted, Path("corpus"))
            assert sum(map(len, encoded.splits.values())) == scan.size


TABLES = (".csv", ".tsv", ".jsonl", ".csv.gz")


def _tables() -> list[bytes]:
    rows = [b'a,b\n"x, ""y""\r\n",2\n', b"a\tb\n1\t2\n", b'{"a": "x\\ud800"}\n{"a": null}\n["b"]\n']
    rows += [
        gzip.compress(rows[0], mtime=0),
        b'"\n',
        b"a\ra\r\n\n",
        b'{"a": "\xf4\x8f\xbf\xbf"}',
        b"",
    ]
    return [bytes([i % len(TABLES)]) + row for i, row in enumerate(rows)]


@target(_tables, '"a"', '""', "\r\n", "null", "\\ud800", "1e999", "[[[[", "\x1f\x8b\x08")
def column(data: bytes) -> None:
    """Read a column, by name and by number, of the kind of table that the first byte chooses."""
    from charlm.config import DataConfig
    from charlm.text import encode_corpus, open_source, scan_text

    name = f"table{TABLES[data[0] % len(TABLES)]}" if data else "table.csv"
    Path(name).write_bytes(data[1:])
    for column in ("a", 1):
        read = DataConfig(
            source=name, column=column, records="lines", val_fraction=0, newlines="lf"
        )
        with refused_in_one_line_each(DataError):
            source = open_source(name)
            scan = scan_text(source, read)
            shutil.rmtree("corpus", ignore_errors=True)
            encoded = encode_corpus(source, read, scan, scan.tokenizer(read), Path("corpus"))
            assert len(encoded.splits["train"]) == scan.size + 1


def _prompts() -> list[bytes]:
    return [b"abc", "\ufeffé ☃ 😀".encode(), b"\xff", b"", b"\0\x1b[31m", "\ufdfa".encode() * 9]


@target(_prompts)
def prompt(data: bytes) -> None:
    """Read a prompt from a file, and from the command line as a shell passes it."""
    from charlm.cli.prompts import read_prompt
    from charlm.sampling import encode_prompt

    path = Path("prompt.txt")
    path.write_bytes(data)
    argument = data.decode("utf-8", "surrogateescape")
    for given in ((None, path), (argument, None)):
        for known in _tokenizers_of_prompts():
            with refused_in_one_line_each(DataError):
                read, where = read_prompt(*given, "", known.unit)
                for unknown in ("error", "skip", "nearest"):
                    with refused_in_one_line_each(DataError):
                        found = encode_prompt(known, read, unknown, where)
                        assert len(found)
                        assert 0 <= found.min() <= found.max() < known.vocab_size
                    if known.unit == "bytes" and data:
                        assert bytes(found.tolist()) == data


@target(
    lambda: [b"ab\nb|abcab", b"\n|", b"aaab|aaaaaaaab", b"\xe2\x98\x83|\xe2\x98\xe2\x98\x83", b"|"]
)
def stops(data: bytes) -> None:
    """Stream a text that stop texts may end: what stands before |, one a line, and what follows.

    What comes out is the text up to the one that is complete first.
    """
    from charlm.sampling import encode_stops
    from charlm.sampling.stream import TextStream
    from charlm.text.raw import decoded

    before, _, after = data.partition(b"|")
    for known in _tokenizers_of_prompts()[:2]:
        drawn = [i % known.vocab_size for i in after]
        ends = []
        for line in before.split(b"\n"):
            with refused_in_one_line_each(DataError, UsageError):
                ends += encode_stops(known, [decoded(line, known.unit, "stop")])
        stream = TextStream(known, ends)
        pieces = [piece for i in drawn for piece in stream.push(i, -1.0)]
        pieces += stream.finish()
        whole, kept = bytes(drawn), [bytes(end.tolist()) for end in ends]
        said = bytes(known.encode("".join(piece.text for piece in pieces)).tolist())
        found = [(at + len(end), at) for end in kept if (at := whole.find(end)) >= 0]
        first = min(found, default=(0, 0))[0]
        starts = [at for last, at in found if last == first]  # of the stops complete first
        assert said == (whole[: min(starts)] if found else whole)
        assert all(math.isfinite(piece.nats) for piece in pieces)


@target(
    lambda: [b"[a-c ]", b"[^]a]", b"abc", b"\\w", b"[z-a]", b"[[a&&b]", b"[\\N{x}]", b"[]", b"[\\"]
)
def allow(data: bytes) -> None:
    """Read what --allow allows: a class of a regular expression, or characters."""
    from charlm.sampling import allowed_ids

    given = data.decode("utf-8", "surrogateescape")
    for known in _tokenizers_of_prompts():
        with refused_in_one_line_each(UsageError):
            found = allowed_ids(known, given)
            assert found.shape == (known.vocab_size,)
            assert found.any()


# ---------------------------------------------------------------------------- output


class Terminal(io.StringIO):
    """A stream that says it is a terminal, and takes what can be encoded only."""

    def isatty(self) -> bool:
        """Say so."""
        return True

    def write(self, text: str) -> int:
        """Keep text that UTF-8 can say."""
        text.encode()
        return super().write(text)


@contextlib.contextmanager
def terminals() -> Iterator[tuple[Terminal, Terminal]]:
    """Stand terminals in the place of stdout and stderr."""
    out, err = Terminal(), Terminal()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield out, err


def assert_tame(text: str, allowed: str = "\n\t") -> None:
    """Check that a terminal can show this text and is told to do nothing by it."""
    wild = set(text) & (CONTROLS | TURNS | HALVES) - set(allowed)
    assert not wild, f"{sorted(wild)} in {text!r}"


def _outputs() -> list[bytes]:
    texts = ("\x1b[2J", "\x9b2J", "\r\b\x7f\0", "\u2028\u202e\u2066", "a\x1b]8;;http://x\x1b\\")
    return [*(text.encode() for text in texts), b"\xed\xa0\x80", b"x" * 600]


@target(_outputs)
def terminal(data: bytes) -> None:
    """Say a text to a terminal in every way there is; what is one line stays one."""
    from charlm.cli import output
    from charlm.cli.escaping import one_word, printable

    try:
        given = data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        given = data.decode("utf-8", "surrogateescape")
    assert_tame(printable(given))
    assert printable(printable(given)) == printable(given)
    assert_tame(one_word(given), allowed="")
    texts = output.TextOut
    streams = [
        lambda text: texts("chars").write(text),
        lambda text: [*map(texts("bytes").write, text)],
    ]
    for speak in (output.result, output.content, output.say, output.note, output.error, *streams):
        with terminals() as (out, err):
            speak(given)
        assert_tame(out.getvalue())
        assert_tame(err.getvalue())
        if speak in (output.note, output.error):
            assert out.getvalue() == ""
            assert len(err.getvalue().splitlines()) == 1
    with terminals() as (out, err):
        output.result_json({given: [given]})
    assert_tame(out.getvalue())


def _expressions() -> list[bytes]:
    texts = ("(a*b + c) * f\0a=2\0b=-3\0c=1\0f=-2", "tanh(x)**2\0x=1", "-" * 50 + "1", "9**9**9")
    more = ("\ufb01\0fi=1", "1/0", "(" * 300, "sqrt(-1)", "'a'", "a if b else c", "1" * 5000, "\0=")
    return [text.encode() for text in (*texts, *more)]


@target(_expressions, "square(", "sqrt(", "relu(", "**", "lambda:", "f'{x}'")
def expression(data: bytes) -> None:
    """Draw an expression, and what its names stand for, as a tree and as a graph."""
    from charlm.backprop.expression import parse
    from charlm.backprop.graph import as_dot, as_records, as_text
    from charlm.cli.graph import _read_values

    first, *more = data.decode("utf-8", "surrogateescape").split("\0")
    with refused_in_one_line_each(UsageError):
        result = parse(first, _read_values(more))
        result.backward()
        as_text(result)
        json.dumps(as_records(result))
        as_dot(result)


# -------------------------------------------------------------------------- compressed files


def _compressed() -> list[bytes]:
    from charlm.coding.methods import without_run
    from charlm.coding.whole import encode

    files = []
    for text in (b"", b"to be or not to be" * 9, bytes(range(256))):
        method, read = without_run(io.BytesIO(text))
        encode(read, out := io.BytesIO(), method, "a", check=False)
        files.append(out.getvalue())
    return files


@target(_compressed, "\x89CLM\r\n\x1a\n", "\0\0\0\0")
def compressed(data: bytes) -> None:
    """Decompress a file; what comes out whole has the SHA-256 that stands in it."""
    with refused_in_one_line_each(DataError, CheckpointError, MachineError):
        _decompress(data)


def _promises() -> list[bytes]:
    from charlm.coding.bits import ENGINE

    portable = {"model": "portable", "engine": ENGINE, "tree": "..616263", "size": 9}
    run = {"model": "run", "run": "../x", "step": 1, "sha256": "0", "adapt": {}, "size": -1}
    run |= {"needs": {}, "processor": "", "fingerprint": "0"}
    return [json.dumps(header).encode() + b"\0\0\0\1any code" for header in (portable, run)]


@target(_promises, "portable", "engine", "tree", "size", "null", "..", "61", "......616263")
def promised(data: bytes) -> None:
    """Decompress a file whose checksums are right, and whose header and code are anything."""
    from charlm.coding.container import Block, ContainerWriter, Digest
    from charlm.storage.json_file import parse_object

    head, _, rest = data.partition(b"\0")
    try:
        header = parse_object(head)
    except ValueError:
        return
    writer = ContainerWriter(file := io.BytesIO(), header)
    size = int.from_bytes(rest[:3], "big") % 5000
    writer.add(Block(1, max(1, size), 0, rest[3:]))
    writer.end(Digest())
    with refused_in_one_line_each(DataError, CheckpointError, MachineError):
        _decompress(file.getvalue())


def _decompress(data: bytes) -> None:
    from charlm.coding.container import ContainerReader
    from charlm.coding.methods import method_of
    from charlm.coding.whole import decode

    container = ContainerReader(io.BytesIO(data), "a.clm")
    assert container.text_size is None or container.text_size >= 0
    decode(container, io.BytesIO(), method_of(container.header, "a.clm", None))
