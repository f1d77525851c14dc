"""Whatever is damaged, and with whatever manifests: `verify` and `--resume` agree."""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from charlm.runs.provenance import PROVENANCE
from tests.cli.test_bad_checkpoints import (
    LAST,
    MOMENT,
    OPTIMIZER,
    QKV,
    RESUME,
    RUN,
    STATE,
    WEIGHTS,
    change,
    forge,
    reseal,
    spoil,
    trained,
)

__all__ = ["trained"]  # a fixture


def all_of(name: str, value: float):
    """Return a damage: every tensor of one file is filled with a value."""

    def damage():
        tensors = {key: tensor.fill_(value) for key, tensor in load_file(LAST / name).items()}
        save_file(tensors, LAST / name, {"version": "2"} if name == WEIGHTS else None)
        reseal(LAST)

    return damage


def with_another(name: str):
    def damage():
        save_file(load_file(LAST / OPTIMIZER) | {name: torch.zeros(2)}, LAST / OPTIMIZER)
        reseal(LAST)

    return damage


def with_state(**changes):
    def damage():
        change(LAST / STATE, **changes)
        reseal(LAST)

    return damage


def with_alphabet(changed):
    def damage():
        path = RUN / "tokenizer.json"
        change(path, alphabet=changed(json.loads(path.read_bytes())["alphabet"]))

    return damage


def with_ids(ids: bytes, **changes):
    def damage():
        (RUN / "tokens/ids.bin").write_bytes(ids)
        reseal(RUN / "tokens", **changes)

    return damage


def with_belongs(section: str, key: str):
    def damage():
        content = json.loads((LAST / PROVENANCE).read_bytes())
        content["config"][section][key] = 3
        (LAST / PROVENANCE).write_text(json.dumps(content))
        reseal(LAST)

    return damage


def cut_log():
    lines = (RUN / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (RUN / "metrics.jsonl").write_bytes(b"".join(lines[:-4]))


def without_bytes():
    forge(OPTIMIZER, (LAST / OPTIMIZER).read_bytes()[:-8])


DAMAGES = {
    "nothing": lambda: None,
    **{f"{n}-{v}": all_of(n, v) for n in (WEIGHTS, OPTIMIZER) for v in (math.nan, -math.inf, 0.5)},
    "tensor-gone": lambda: spoil(WEIGHTS, QKV, lambda tensor: tensor[:0].clone()),
    "moment-half": lambda: spoil(OPTIMIZER, MOMENT, lambda tensor: tensor.half()),
    "moment-flat": lambda: spoil(OPTIMIZER, MOMENT, lambda tensor: tensor.flatten()),
    "moment-more": with_another(f"{MOMENT}x"),
    "optimizer-cut": without_bytes,
    "optimizer-other": with_another(f"muon/{QKV}/momentum_buffer"),
    "seconds-negative": with_state(seconds=-2.0),
    "seconds-nan": with_state(seconds=math.nan),
    "factor-0": with_state(rate_factor=0.0),
    "step-5": with_state(step=5),
    "step-31-digits": with_state(step=10**30),
    "log-longer": with_state(metrics_bytes=10**9),
    "log-cut": cut_log,
    "log-gone": lambda: (RUN / "metrics.jsonl").unlink(),
    "alphabet-turned": with_alphabet(lambda text: text[::-1]),
    "alphabet-short": with_alphabet(lambda text: text[:-1]),
    "alphabet-long": with_alphabet(lambda text: text + "\u2603"),
    "ids-too-large": with_ids(b"\xfa" * 2580),
    "ids-others": with_ids(b"\x01" * 2580),
    "ids-short": with_ids(b"\x01" * 7),
    "text-short": with_ids(
        b"\x01" * 7, size=7, splits={"train": [0, 5], "val": [5, 7], "test": [7, 7]}
    ),
    "text-unnamed": with_ids(b"\x01" * 2580, source_sha256="x"),
    "tokens-gone": lambda: shutil.rmtree(RUN / "tokens"),
    "belongs-model": with_belongs("model", "n_head"),
    "belongs-data": with_belongs("data", "max_vocab"),
    "belongs-batch": with_belongs("train", "batch_size"),
    "belongs-other": with_belongs("train", "eval_every"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_verify_and_resuming_agree_on_what_can_be_continued(charlm, trained, damage):
    """Verify says more of what resuming passes over: records of the log, damaged checkpoints."""
    DAMAGES[damage]()

    verified = charlm("verify", RUN)
    resumed = charlm(*RESUME)

    assert verified.code in (0, 4)
    refused = resumed.code != 0 or "going back to an older one" in resumed.stderr
    assert (verified.code == 4) == refused, verified.stdout + resumed.stderr
