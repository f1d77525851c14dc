"""Checkpoints that are damaged, hostile, or of another run: rows 48 to 61 of the bad-input table.

What is named is refused with exit 4 and one line; resuming passes over what is damaged. A hostile
checkpoint has a manifest that fits it: whoever can write the one can write the other. Nothing of it
may be run as code.
"""

import io
import json
import math
import os
import pickle
import random
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from charlm.runs.provenance import PROVENANCE
from charlm.storage.manifest import write_manifest

RUN = Path("runs/tiny")
OLDER, LAST = RUN / "checkpoints/step-3", RUN / "checkpoints/step-6"
WEIGHTS, OPTIMIZER, STATE, MANIFEST = (
    "model.safetensors",
    "optimizer.safetensors",
    "state.json",
    "MANIFEST.json",
)
SAMPLE = ("sample", "--run", RUN, "--max-new-chars", 4, "--seed", 1)
EVAL = ("eval", "--run", RUN)
RESUME = ("train", "--resume", "--out", RUN, "-q")
NAMED = (SAMPLE, (*EVAL, "--checkpoint", 6))


@pytest.fixture
def trained(trained):
    """A run of six steps that was to have eight."""
    config = RUN / "config.yaml"
    text = config.read_text().replace("baselines: true", "baselines: false")
    config.write_text(text.replace("max_steps: 6", "max_steps: 8"))
    for folder in (OLDER, LAST):
        belongs = json.loads((folder / PROVENANCE).read_bytes())
        belongs["config"]["train"]["max_steps"] = 8
        belongs["config"]["eval"]["baselines"] = False
        (folder / PROVENANCE).write_text(json.dumps(belongs))
        reseal(folder)
    return trained


def reseal(folder: Path, **changes) -> None:
    """Make a manifest fit what its folder holds now, as a forger would."""
    path = folder / MANIFEST
    facts = json.loads(path.read_bytes()) | changes
    path.unlink()
    write_manifest(folder, {key: facts[key] for key in facts if key not in ("format", "files")})


def without_belongs(folder: Path) -> None:
    """Leave a checkpoint as the first ones were."""
    (folder / PROVENANCE).unlink(missing_ok=True)
    reseal(folder)


def forge(name: str, content: bytes) -> None:
    (LAST / name).write_bytes(content)
    reseal(LAST)


def change(path: Path, **changes) -> None:
    content = json.loads(path.read_bytes()) | changes
    if path.name == MANIFEST:
        content["files"].pop(MANIFEST, None)  # the proof of itself, which older ones lack
    path.write_text(json.dumps(content))


@pytest.fixture
def named(refused, trained):
    """Read the run by commands that must all refuse it in one line; return the last one's."""

    def check(*core: str, commands=NAMED, code: int = 4) -> str:
        for command in commands:
            (line,) = refused(code, *command)
            assert all(part in line for part in core), line
            assert "; " in line  # how to mend it
            assert len(f"charlm: error: {line}") <= 200
        return line

    return check


@pytest.fixture
def passed_over(charlm, trained):
    """Resume a run whose newest checkpoint is damaged: an older one must serve, with a note."""

    def check(core: str) -> None:
        result = charlm(*RESUME)
        assert result.code == 0, result.stderr
        (note,) = result.stderr.splitlines()
        aside = f"damaged-{LAST.name}"
        assert note.startswith(
            f"charlm: note: damaged, kept as {aside}, going back to an older one: "
        )
        assert core in note
        assert len(note) <= 200
        assert os.path.lexists(LAST.parent / aside)
        records = Path(RUN / "metrics.jsonl").read_text().splitlines()
        steps = [json.loads(r)["step"] for r in records if '"train"' in r]
        assert steps == [1, 2, 3, 4, 5, 6, 7, 8]

    return check


def test_what_is_sound_is_read(charlm, trained):
    for command in (*NAMED, RESUME):
        assert charlm(*command).code == 0


def test_row_48_a_folder_without_a_manifest_was_never_finished(named, passed_over):
    (LAST / MANIFEST).unlink()

    commands = (*NAMED, (*SAMPLE, "--checkpoint", "last"))
    named(f"{LAST}: no MANIFEST.json, so it was never finished; name another", commands=commands)
    passed_over(f"{LAST}: no MANIFEST.json")


def test_row_48_what_may_have_been_the_best_is_not_replaced_unasked(charlm, named):
    (OLDER / MANIFEST).unlink()

    named(f"{OLDER}: no MANIFEST.json", commands=[SAMPLE, EVAL])
    assert charlm(*SAMPLE, "--checkpoint", "last").code == 0
    assert charlm(*SAMPLE, "--checkpoint", 6).code == 0


@pytest.mark.parametrize("name", [WEIGHTS, OPTIMIZER, STATE])
def test_row_49_a_truncated_file_is_refused_by_its_size(named, passed_over, name):
    size = (LAST / name).stat().st_size
    os.truncate(LAST / name, size - 1)

    named(f"{LAST / name}: {size - 1} bytes, its manifest says {size}; ")
    passed_over(f"{LAST / name}: {size - 1} bytes")


def flip(path: Path, spot: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[spot.randrange(len(data))] ^= 1 << spot.randrange(8)
    path.write_bytes(data)


@pytest.mark.parametrize("number", range(64))
def test_row_50_one_flipped_bit_is_noticed(named, number):
    files = [LAST / name for name in (WEIGHTS, OPTIMIZER, STATE, MANIFEST)]
    path = [*files, RUN / "tokens/ids.bin", RUN / "tokens" / MANIFEST][number % 6]
    flip(path, random.Random(number))

    command = EVAL if path.parent.name == "tokens" else NAMED[number % 2]
    # A manifest may no longer be JSON then, or of another format.
    core = f"{path.parent}" if path.name == MANIFEST else f"{path}: SHA-256 differs from its"
    named(core, commands=[command])


def test_row_50_what_a_manifest_says_itself_is_proven_too(named, passed_over):
    path = LAST / MANIFEST
    path.write_bytes(path.read_bytes().replace(b'"val_loss_nats": 3', b'"val_loss_nats": 1'))

    named(f"{path}: SHA-256 differs from its manifest; ")
    passed_over(f"{path}: SHA-256 differs from its manifest")


def test_row_50_resuming_passes_over_a_flipped_bit(passed_over):
    flip(LAST / WEIGHTS, random.Random(1))

    passed_over(f"{LAST / WEIGHTS}: SHA-256 differs")


def test_row_50_the_text_of_a_run_is_not_resumed_with_a_flipped_bit(named):
    flip(RUN / "tokens/ids.bin", random.Random(1))

    named("ids.bin: SHA-256 differs", "; restore it or start a new run", commands=[RESUME])


def test_row_50_a_run_of_which_nothing_is_sound_is_refused(named):
    for folder in (OLDER, LAST):
        flip(folder / OPTIMIZER, random.Random(1))

    named("SHA-256 differs", "; restore it or start a new run", commands=[RESUME])


@pytest.mark.parametrize("name", [WEIGHTS, OPTIMIZER, STATE])
def test_row_51_a_missing_file_is_named(named, passed_over, name):
    (LAST / name).unlink()

    named(f"{LAST}: {name!r} is missing or no regular file")
    passed_over(f"{LAST}: {name!r} is missing")


def test_row_51_an_extra_file_is_named(named, passed_over):
    (LAST / "model-00002.safetensors").write_bytes(b"")

    named(f"{LAST}: 'model-00002.safetensors' is not in its manifest")
    passed_over("'model-00002.safetensors' is not in its manifest")


# Rows 52 to 54: what a forger may put there, each with a manifest that fits.


class Canary:
    """Whoever unpickles it leaves a file behind."""

    def __reduce__(self):
        return (open, ("pwned", "w"))


def torch_saved(zipped: bool) -> bytes:
    packed = io.BytesIO()
    torch.save({"w": Canary()}, packed, _use_new_zipfile_serialization=zipped)
    return packed.getvalue()


PICKLES = {f"pickle-{p}": pickle.dumps(Canary(), protocol=p) for p in range(6)}
PICKLES |= {f"pickle-{p}-dict": pickle.dumps({"w": Canary()}, protocol=p) for p in range(6)}
PICKLES["torch-legacy"] = torch_saved(zipped=False)
PICKLES["dcp-metadata"] = pickle.dumps({"state_dict_metadata": [Canary()], "storage_data": None})
PICKLES["torch-zip"] = torch_saved(zipped=True)


def safetensors(header: object, body: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def entry(begin: int, end: int, shape: list[int] | None = None, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape or [1], "data_offsets": [begin, end]}


ONE = json.dumps(entry(0, 4))
HEADERS = {
    "length-2^63": safetensors({}, length=1 << 63),
    "length-2^64-1": safetensors({}, length=(1 << 64) - 1),
    "length-beyond-the-file": safetensors({"w": entry(0, 4)}, bytes(4), length=99_000_000),
    "empty": b"",
    "short": bytes(7),
    "zeros": bytes(64),
    "not-json": safetensors(b"{nonsense}"),
    "not-utf-8": safetensors(b'{"\xff": 1}'),
    "a-list": safetensors([]),
    "deep": safetensors(b'{"w":' + b"[" * 100_000),
    "cut-off": safetensors({"w": entry(0, 4)}, bytes(3)),
    "more-than-said": safetensors({"w": entry(0, 4)}, bytes(8)),
    "overlap": safetensors({"w": entry(0, 8, [2]), "v": entry(4, 12, [2])}, bytes(12)),
    "hole-at-the-start": safetensors({"w": entry(4, 8)}, bytes(8)),
    "hole-between": safetensors({"w": entry(0, 4), "v": entry(8, 12)}, bytes(12)),
    "backwards": safetensors({"w": entry(4, 0)}, bytes(4)),
    "offset-2^64": safetensors({"w": entry((1 << 64) - 4, (1 << 64) - 1)}, bytes(4)),
    "huge-shape": safetensors({"w": entry(0, 4, [1 << 40, 1 << 40])}, bytes(4)),
    "huge-and-empty": safetensors({"w": entry(0, 0, [0, 1 << 63])}),
    "huge-number": safetensors(f'{{"w": {ONE.replace("[1]", "[" + "9" * 5000 + "]")}}}'.encode()),
    "negative-shape": safetensors({"w": entry(0, 4, [-1])}, bytes(4)),
    "unknown-dtype": safetensors({"w": entry(0, 4, dtype="X9")}, bytes(4)),
    "name-twice": safetensors(f'{{"w": {ONE}, "w": {ONE}}}'.encode(), bytes(4)),
    "note-twice": safetensors(
        f'{{"__metadata__": {{"version": "1", "version": "2"}}, "w": {ONE}}}'.encode(), bytes(4)
    ),
}
STRANGE = {  # safetensors indeed, though not of this model
    "empty-beyond-memory": safetensors({"w": entry(0, 0, [0, 1 << 61])}),
    "many-dimensions": safetensors({"token_embedding.weight": entry(0, 4, [1] * 5000)}, bytes(4)),
    "long-name": safetensors({"w" * 100_000: entry(0, 4)}, bytes(4)),
    "commands-in-a-name": safetensors({"\n\x1b[31mw": entry(0, 4)}, bytes(4)),
}
EVERY = (SAMPLE, RESUME)


@pytest.mark.parametrize("name", [WEIGHTS, OPTIMIZER])
@pytest.mark.parametrize("kind", PICKLES)
def test_row_52_a_pickle_by_another_name_is_known_by_its_content(named, kind, name):
    forge(name, PICKLES[kind])

    core = "a zip archive, as torch.save writes around a pickle" if "zip" in kind else "a pickle"
    commands = EVERY if name == WEIGHTS else [RESUME]
    named(f"{LAST / name}: {core}, which can run code: refused unread", commands=commands)


@pytest.mark.parametrize("kind", PICKLES)
def test_row_52_a_pickle_in_the_manifests_place_is_not_run(named, kind):
    (LAST / MANIFEST).write_bytes(PICKLES[kind])

    named(f"{LAST / MANIFEST}: cannot be read", commands=[SAMPLE])


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp", "last.pt", "last.pth", "m.pkl"])
@pytest.mark.parametrize("listed", [True, False])
def test_row_53_what_is_named_as_a_pickle_is_refused_unread(named, passed_over, name, listed):
    (LAST / name).write_bytes(PICKLES["dcp-metadata"])
    if listed:
        reseal(LAST)

    core = f"{LAST}: {name!r} is named as a pickle, which can run code, and was not read"
    named(core, commands=[SAMPLE])
    if name == ".metadata":
        passed_over(core)


@pytest.mark.parametrize("name", [WEIGHTS, OPTIMIZER])
@pytest.mark.parametrize("kind", HEADERS)
def test_row_54_an_impossible_header_is_refused(named, kind, name):
    forge(name, HEADERS[kind])

    commands = EVERY if name == WEIGHTS else [RESUME]
    named(f"{LAST / name}: not readable as safetensors (", commands=commands)


@pytest.mark.parametrize("name", [WEIGHTS, OPTIMIZER])
@pytest.mark.parametrize("kind", STRANGE)
def test_row_54_tensors_of_no_model_are_refused(named, kind, name):
    forge(name, STRANGE[kind])

    if name == WEIGHTS:
        named(f"{LAST / name}: ", commands=EVERY)
    else:
        named(f"{LAST / name}: saved with ", commands=[RESUME])


AUDIT = """
import json, os, resource, shutil, sys
from pathlib import Path
from charlm.cli.main import run
from tests.cli.test_bad_checkpoints import LAST, RESUME, SAMPLE, WEIGHTS, OPTIMIZER, reseal

COMMANDS = {WEIGHTS: (*SAMPLE, "--checkpoint", "6"), OPTIMIZER: RESUME}
WATCHED = ("pickle.", "socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork",
           "exec", "compile", "import", "marshal.", "ctypes.")
seen, watching = [], False

def opened_by_torch(event):  # which loads libraries of its own when it first needs them
    frame = sys._getframe(2)
    while frame and frame.f_globals.get("__name__", "").split(".")[0] == "ctypes":
        frame = frame.f_back
    caller = frame.f_globals.get("__name__", "") if frame else ""
    return event == "ctypes.dlopen" and caller.split(".")[0] == "torch"

def hook(event, arguments):
    if watching and event.startswith(WATCHED) and not opened_by_torch(event):
        seen.append(event)

def answer(kind, name):
    global watching
    watching = True
    code = run([str(argument) for argument in COMMANDS[name]])
    watching = False
    print(json.dumps([kind, name, code, seen]), flush=True)
    seen.clear()

sys.addaudithook(hook)
kept = Path("kept")
shutil.copytree(LAST, kept)
for name in COMMANDS:  # so that what refusing itself imports is there
    (LAST / name).write_bytes(b"?")
    reseal(LAST)
    answer("first", name)
    shutil.copy(kept / name, LAST / name)
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = max(pages * os.sysconf("SC_PAGE_SIZE"), 3 << 28) + (256 << 20)  # charlm wants a GiB
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for hostile in sorted(Path("hostile").iterdir()):
    for name in COMMANDS:
        shutil.rmtree(LAST)
        shutil.copytree(kept, LAST)
        shutil.copy(hostile, LAST / name)
        reseal(LAST)
        answer(hostile.name, name)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="where Linux tells the size")
def test_rows_52_to_54_nothing_is_run_or_fetched_and_little_memory_taken(trained):
    hostile = PICKLES | HEADERS | STRANGE
    Path("hostile").mkdir()
    for kind, content in hostile.items():
        (Path("hostile") / kind).write_bytes(content)

    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", AUDIT],
        env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stderr
    _, _, *answers = map(json.loads, done.stdout.splitlines())
    assert len(answers) == 2 * len(hostile)
    for kind, name, code, events in answers:
        assert events == [], (kind, name)
        assert code == 4, (kind, name)
    assert "Traceback" not in done.stderr
    assert not Path("pwned").exists()


# Row 55


@pytest.mark.parametrize(
    "name",
    ["../x", "..", "/etc/hostname", "/", "sub/x", "./x", "../../../config.yaml", "x" * 5000],
)
def test_row_55_a_name_that_leads_elsewhere_is_unsafe(named, passed_over, name):
    files = json.loads((LAST / MANIFEST).read_bytes())["files"]
    (LAST.parent / "x").write_bytes((LAST / STATE).read_bytes())
    change(LAST / MANIFEST, files=files | {name: files[STATE]})

    core = f"{LAST}: unsafe path {name!r}" if len(name) < 30 else f"{LAST}: "
    named(core)
    if name == "../x":
        passed_over(core)


@pytest.mark.parametrize("name", [WEIGHTS, OPTIMIZER, STATE])
def test_row_55_a_linked_file_is_unsafe(named, passed_over, name):
    (LAST / name).rename("elsewhere")
    (LAST / name).symlink_to(Path("elsewhere").resolve())

    named(f"{LAST}: unsafe path {name!r}")
    passed_over(f"{LAST}: unsafe path {name!r}")


def test_row_55_a_linked_manifest_is_unsafe(named, passed_over):
    (LAST / MANIFEST).rename("elsewhere")
    (LAST / MANIFEST).symlink_to(Path("elsewhere").resolve())

    named(f"{LAST / MANIFEST}: unsafe path, a symbolic link")
    passed_over(f"{LAST / MANIFEST}: unsafe path")


@pytest.mark.parametrize("there", [True, False])
def test_row_55_a_linked_checkpoint_is_unsafe(named, passed_over, there):
    shutil.move(LAST, "elsewhere")
    LAST.symlink_to(Path("elsewhere" if there else "nowhere").resolve())

    named(f"{LAST}: unsafe path, a symbolic link")
    passed_over(f"{LAST}: unsafe path, a symbolic link")
    assert Path("elsewhere", WEIGHTS).is_file()


def test_row_55_a_linked_text_is_unsafe(named):
    (RUN / "tokens/ids.bin").rename("elsewhere")
    (RUN / "tokens/ids.bin").symlink_to(Path("elsewhere").resolve())

    named(f"{RUN / 'tokens'}: unsafe path 'ids.bin'", commands=[EVAL, RESUME])


# Rows 56 to 61


@pytest.mark.parametrize("found", [2, 10**9, "2.0", ["x" * 500]], ids=["2", "10^9", "2.0", "list"])
def test_row_56_a_newer_format_asks_for_an_upgrade(named, found):
    change(LAST / MANIFEST, format=found)

    named(f"{LAST / MANIFEST}: format ", ", this charlm reads 1; upgrade charlm", commands=EVERY)


def test_row_56_a_newer_text_or_alphabet_asks_for_an_upgrade(named):
    change(RUN / "tokens" / MANIFEST, format=2)
    named("tokens/MANIFEST.json: format 2", "; upgrade charlm", commands=[EVAL, RESUME])

    change(RUN / "tokenizer.json", format=2)
    named(f"{RUN}/tokenizer.json: format 2", "; upgrade charlm", commands=EVERY)


def test_row_56_weights_of_another_version_of_their_model_are_refused(named):
    save_file(load_file(LAST / WEIGHTS), LAST / WEIGHTS, {"version": "99"})
    reseal(LAST)

    named("weights of version 99 of its model", "; use the charlm that", commands=EVERY)


def test_row_57_a_text_with_other_symbols_is_refused_by_the_first(named):
    text = Path("text.txt").read_text()
    Path("text.txt").write_text(text + "\u00df \u00e9")

    named(
        "text.txt: '\u00df' (U+00DF) and 1 more not in runs/tiny/tokenizer.json",
        "; start a new run",
        commands=[(*RESUME, "--allow-new-data")],
    )


@pytest.mark.parametrize(("key", "old", "new"), [("n_head", 2, 4), ("style", "modern", "gpt2")])
def test_row_58_what_shapes_do_not_show_is_compared(named, key, old, new):
    config = RUN / "config.yaml"
    config.write_text(config.read_text().replace(f"{key}: {old}", f"{key}: {new}"))

    core = f"config.yaml: model.{key} is {new!r}, step-6 was saved with {old!r}; restore it"

    named(core, commands=(*NAMED, RESUME))


def test_row_57_an_alphabet_in_another_order_is_refused(named):
    path = RUN / "tokenizer.json"
    content = json.loads(path.read_bytes())
    content["alphabet"] = content["alphabet"].replace("z", "{")
    path.write_text(json.dumps(content))

    named("tokenizer.json: not the alphabet that step-6 was saved with; restore it")


def test_row_57_an_alphabet_of_another_run_is_refused(named):
    content = json.loads((RUN / "tokenizer.json").read_bytes())
    other = content["alphabet"].replace("x", "\u00e9")
    change(RUN / "tokenizer.json", alphabet="".join(sorted(other)))
    core = "tokenizer.json: not the alphabet that step-6 was saved with"
    named(core, commands=[RESUME])

    change(RUN / "tokenizer.json", alphabet=content["alphabet"][1:])
    commands = [SAMPLE, (*EVAL, "--checkpoint", 6)]
    named(core, commands=commands)
    without_belongs(LAST)
    named("(31, 16) torch.float32, expected (30, 16)", commands=commands)


def test_row_58_another_depth_is_refused_with_both(named):
    Path("deep.yaml").write_text(Path("tiny.yaml").read_text().replace("n_layer: 2", "n_layer: 4"))

    named(
        "model.n_layer: the configuration says 4, the run was made with 2; start a new run",
        commands=[(*RESUME, "model.n_layer=4"), (*RESUME, "--config", "deep.yaml")],
    )


def test_row_58_a_configuration_changed_by_hand_is_refused(named):
    config = RUN / "config.yaml"
    config.write_text(config.read_text().replace("n_layer: 2", "n_layer: 1"))

    named("config.yaml: model.n_layer is 1, step-6 was saved with 2; restore it", commands=EVERY)
    without_belongs(LAST)
    named(f"{LAST / WEIGHTS}: blocks.1.", "config.yaml describes another model", commands=EVERY)


def spoil(name: str, key: str, damage) -> None:
    """Change a tensor of the last checkpoint, with a manifest that fits."""
    tensors = {k: v.clone() for k, v in load_file(LAST / name).items()}
    with_facts = {"version": "2"} if name == WEIGHTS else None
    tensors[key] = damage(tensors[key])
    save_file(tensors, LAST / name, with_facts)
    reseal(LAST)


QKV = "blocks.0.attention.qkv.weight"
MOMENT = f"adamw/{QKV}/exp_avg"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(("name", "key"), [(WEIGHTS, QKV), (OPTIMIZER, MOMENT)])
def test_row_59_values_that_are_not_finite_are_counted(named, name, key, value):
    def damage(tensor):
        tensor[:2, 3] = value
        return tensor

    spoil(name, key, damage)

    commands = EVERY if name == WEIGHTS else [RESUME]
    named(f"{name}: {key} holds 2 values that are NaN or infinite; use an", commands=commands)


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        pytest.param(lambda t: t.half(), "(48, 16) torch.float16", id="half"),
        pytest.param(lambda t: t.double(), "(48, 16) torch.float64", id="double"),
        pytest.param(lambda t: t.to(torch.complex64), "(48, 16) torch.complex64", id="complex"),
        pytest.param(lambda t: t.T.contiguous(), "(16, 48) torch.float32", id="turned"),
        pytest.param(lambda t: t.flatten(), "(768,) torch.float32", id="flat"),
        pytest.param(lambda t: t[:0].clone(), "(0, 16) torch.float32", id="nothing"),
        pytest.param(lambda t: t.sum(), "() torch.float32", id="scalar"),
    ],
)
@pytest.mark.parametrize(("name", "key"), [(WEIGHTS, QKV), (OPTIMIZER, MOMENT)])
def test_row_60_another_shape_or_type_is_refused_with_both(named, name, key, damage, found):
    spoil(name, key, damage)

    commands = EVERY if name == WEIGHTS else [RESUME]
    named(f"{name}: {key} is {found}, expected (48, 16) torch.float32; ", commands=commands)


def test_row_60_an_optimizer_that_kept_too_little_is_refused(named):
    tensors = load_file(LAST / OPTIMIZER)
    del tensors[MOMENT]
    save_file(tensors, LAST / OPTIMIZER)
    reseal(LAST)

    named(f"{OPTIMIZER}: {MOMENT} is missing; use an earlier", commands=[RESUME])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("step", 5),
        ("step", "six"),
        ("step", None),
        ("bad_evals", -1),
        ("bad_evals", True),
        ("metrics_bytes", -1),
        ("metrics_bytes", 1.5),
        ("seconds", "long"),
        ("seconds", None),
        ("best_loss_nats", float("nan")),
        ("best_loss_nats", [1]),
        ("best_loss_nats", 10**400),
    ],
    ids=lambda value: str(value)[:12],
)
def test_row_60_a_state_that_cannot_be_is_passed_over(charlm, trained, key, value):
    change(LAST / STATE, **{key: value})
    reseal(LAST)

    result = charlm(*RESUME)

    assert result.code == 0
    assert f"{STATE}: incomplete or impossible ({key} is " in result.stderr


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"{}", b"[" * 100_000, b"\x80\x04."])
def test_row_60_a_state_that_is_none_is_refused_where_there_is_no_other(named, content):
    forge(STATE, content)
    shutil.rmtree(OLDER)

    named(f"{LAST / STATE}: incomplete or impossible (", "; use an earlier", commands=[RESUME])


@pytest.mark.parametrize("loss", [10**400, "low", True, [1.0], {}], ids=lambda v: str(v)[:5])
def test_a_loss_that_is_none_makes_no_checkpoint_the_best(charlm, trained, loss):
    change(OLDER / MANIFEST, val_loss_nats=loss)

    assert "step 6" in charlm(*EVAL).stderr


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": "|O"},
        {"dtype": "<u2"},
        {"vocab_size": None},
        {"size": 10**400},
        {"size": -1},
        {"splits": {"train": [0, 9]}},
        {"splits": {"train": [0, 2322], "val": [2322, 2590], "test": [2590, 2590]}},
        {"splits": {"train": [0, 2322], "val": [2322, -1], "test": [2580, 2580]}},
        {"splits": {"train": [0, 2322.0], "val": [0.5, 2580], "test": [2580, 2580]}},
    ],
    ids=lambda changes: str(changes)[:60],
)
def test_a_text_that_cannot_be_is_refused(named, changes):
    change(RUN / "tokens" / MANIFEST, **changes)

    named(f"{RUN / 'tokens'}: its manifest is incomplete", commands=[EVAL, RESUME])


@pytest.mark.parametrize(("key", "then"), [("torch", "2.0.0"), ("threads", 64), ("cpu", "Z80")])
def test_row_61_another_build_or_thread_count_is_a_note(charlm, trained, key, then):
    environment = json.loads((LAST / MANIFEST).read_bytes())["environment"]
    change(LAST / MANIFEST, environment=environment | {key: then})

    result = charlm(*RESUME)

    assert result.code == 0
    assert result.stderr.startswith(f"charlm: note: not bit-exact: {key} was {then}, now ")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (10**30, "model.block_size: must be at least 1 and at most 1000000000000 (characters in"),
        (10**12, "this machine has "),
        (-(10**30), "model.block_size: must be at least 1 (characters in"),
    ],
    ids=["31-digits", "13-digits", "negative"],
)
def test_a_window_of_absurd_size_that_all_files_agree_on_is_refused(refused, trained, size, said):
    """The rotary tables grow with it, and no weights do."""
    config = RUN / "config.yaml"
    config.write_text(config.read_text().replace("block_size: 8", f"block_size: {size}"))
    for folder in (OLDER, LAST):
        belongs = json.loads((folder / PROVENANCE).read_bytes())
        belongs["config"]["model"]["block_size"] = size
        (folder / PROVENANCE).write_text(json.dumps(belongs))
        reseal(folder)

    for command in (SAMPLE, EVAL, ("compare", RUN), RESUME):
        resuming = command == RESUME and size == 10**12  # as a new run would be
        (line,) = refused(2 if resuming else 4, *command)
        assert said in line


@pytest.mark.parametrize("command", [SAMPLE, EVAL])
def test_a_damaged_best_checkpoint_is_answered_with_another(named, command):
    spoil(WEIGHTS, QKV, lambda tensor: tensor.fill_(math.nan))

    line = named("holds 768 values that are NaN", commands=[command])

    assert line.endswith("; use --checkpoint 3")


def test_a_run_that_was_stopped_early_is_read_at_its_last_step(charlm, trained):
    """Only its first evaluation, before any training, was made."""
    OLDER.rename(OLDER.with_name("step-0"))
    older = OLDER.with_name("step-0")
    change(older / STATE, step=0)
    reseal(older, step=0)
    reseal(LAST, val_loss_nats=None)

    results = [charlm(*command) for command in (SAMPLE, EVAL)]

    for result in results:
        assert result.code == 0
        assert "charlm: note: only step 0 was evaluated, so this is the last" in result.stderr
    assert "step 6" in results[1].stderr
