import shutil

import pytest
import torch
from torch import nn

from charlm.config import read_config
from charlm.errors import CheckpointError, MachineError
from charlm.models import BigramModel, MixtureModel, build_model
from charlm.runs import RunFolder, state
from charlm.runs import weights as saved
from charlm.runs.load import load_model
from charlm.runs.weights import load_weights, save_tensors, save_weights
from charlm.storage import read_manifest
from charlm.storage.manifest import sha256_of
from charlm.text.tokenizer import load_tokenizer
from tests.models.conftest import CONFIGS, VOCAB


def test_weights_come_back_bit_for_bit(each_config, tmp_path):
    one, other = build_model(each_config, VOCAB, 1), build_model(each_config, VOCAB, 2)
    save_weights(one, tmp_path / "w")

    load_weights(other, tmp_path / "w")

    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_tied_weights_are_stored_once(tmp_path):
    model = build_model(CONFIGS["gpt2"], VOCAB)
    save_weights(model, tmp_path / "w")

    scalars = sum(p.numel() for p in model.parameters())

    assert (tmp_path / "w").stat().st_size < 4 * scalars + 4096


def test_tied_weights_are_saved_under_both_names(tmp_path):
    class Tied(BigramModel):
        def __init__(self):
            super().__init__(VOCAB, 8)
            self.head = nn.Linear(VOCAB, VOCAB, bias=False)
            self.head.weight = self.table.weight

    model, other = Tied(), Tied()
    nn.init.normal_(model.table.weight)
    save_weights(model, tmp_path / "w")

    load_weights(other, tmp_path / "w")

    assert other.head.weight is other.table.weight
    assert torch.equal(other.table.weight, model.table.weight)


def test_weights_of_another_model_are_refused_by_name(tmp_path):
    save_weights(build_model(CONFIGS["modern"], VOCAB), tmp_path / "w")

    with pytest.raises(CheckpointError, match=r"blocks\.0.*final_norm|blocks|final_norm"):
        load_weights(build_model(CONFIGS["gpt2"], VOCAB), tmp_path / "w")


def test_another_shape_is_refused_with_both(tmp_path):
    save_weights(build_model(CONFIGS["bigram"], VOCAB), tmp_path / "w")

    with pytest.raises(CheckpointError, match=r"\(11, 11\).*expected \(12, 12\)"):
        load_weights(build_model(CONFIGS["bigram"], VOCAB + 1), tmp_path / "w")


def test_a_nan_in_the_weights_is_refused_and_counted(tmp_path):
    table = torch.zeros(VOCAB, VOCAB)
    table[3, 4] = table[5, 6] = float("nan")
    save_tensors({"table.weight": table}, tmp_path / "w")

    with pytest.raises(CheckpointError, match=r"table\.weight holds 2 values"):
        load_weights(build_model(CONFIGS["bigram"], VOCAB), tmp_path / "w")


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        (b"", r"not readable as safetensors \(.*\); name another"),
        (b"\xff" * 8 + b"{}", "not readable as safetensors"),
        (b"\x80\x04.", "a pickle, which can run code: refused unread; name another"),
        (b"PK\x03\x04", "a zip archive, as torch.save writes around a pickle"),
    ],
)
def test_what_is_not_safetensors_is_refused(content, answer, tmp_path):
    (tmp_path / "w").write_bytes(content)

    with pytest.raises(CheckpointError, match=answer):
        load_weights(build_model(CONFIGS["bigram"], VOCAB), tmp_path / "w")


def test_a_run_folder_alone_is_enough(trained, tmp_path):
    moved = tmp_path / "elsewhere" / "model"
    shutil.move(trained, moved)
    shutil.rmtree(tmp_path / "runs")
    (tmp_path / "text.txt").unlink()

    saved = load_model(RunFolder(moved))

    assert saved.step == 6
    assert saved.tokenizer.decode(saved.tokenizer.encode("the quick")) == "the quick"
    assert not saved.model.training


def test_a_flipped_bit_is_refused(trained):
    run = RunFolder(trained)
    path = run.checkpoints.path(6) / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)

    with pytest.raises(CheckpointError, match="SHA-256"):
        load_model(run, "last")


def test_weights_that_do_not_fit_the_configuration_are_refused(trained):
    run = RunFolder(trained)
    text = run.config_path.read_text().replace("n_layer: 2", "n_layer: 3")
    run.config_path.write_text(text)

    with pytest.raises(CheckpointError, match=r"model\.n_layer is 3, step-6 was saved with 2"):
        load_model(run)


def test_the_manifest_vouches_for_every_file(trained):
    folder = RunFolder(trained).checkpoints.path(6)
    files = read_manifest(folder)["files"]

    expected = {"model.safetensors", "optimizer.safetensors", "state.json", "belongs.json"}
    assert set(files) == expected
    for name, facts in files.items():
        assert facts["sha256"] == sha256_of(folder / name)


def test_weights_of_another_version_of_their_model_are_refused(tmp_path):
    """What was saved before `modern` shifted tokens has the same names and shapes."""
    for name in ("modern", "mixture"):
        model = build_model(CONFIGS[name], VOCAB)
        save_tensors(model.state_dict(), tmp_path / "w")
        with pytest.raises(CheckpointError, match=r"weights of version 1 .* has version 2.*again"):
            load_weights(model, tmp_path / "w")
        save_weights(model, tmp_path / "w")
        load_weights(model, tmp_path / "w")
    save_tensors(build_model(CONFIGS["gpt2"], VOCAB).state_dict(), tmp_path / "w")
    load_weights(build_model(CONFIGS["gpt2"], VOCAB), tmp_path / "w")


def test_a_folder_that_is_gone_while_weights_are_written_is_a_machine_error(tmp_path):
    """The writer of safetensors has an error of its own for it, with the number in its text."""
    with pytest.raises(MachineError, match=r"w: No such file or directory; check the path"):
        save_tensors({"a": torch.zeros(3)}, tmp_path / "gone" / "w")


def test_a_write_that_stops_midway_is_a_machine_error_and_leaves_nothing(tmp_path):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(MachineError, match=r"w: File too large; "):
            save_tensors({"a": torch.zeros(30_000)}, tmp_path / "w")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    assert list(tmp_path.iterdir()) == []


def test_a_mixture_of_before_whose_experts_read_otherwise_now_is_refused(tmp_path):
    """In version 1 a modern expert with a shorter block read half a block at a time."""
    for block_size, known in [(CONFIGS["modern"].block_size, True), (64, False)]:
        model = MixtureModel(VOCAB, block_size, {"gpt": build_model(CONFIGS["modern"], VOCAB)})
        path = tmp_path / f"{block_size}"
        save_weights(model, path)
        load_weights(model, path)
        # Then the version of its expert was saved.
        save_tensors(model.state_dict(), path, {"version": "2"})

        if known:
            load_weights(model, path)
        else:
            with pytest.raises(CheckpointError, match="version 2 of its model, this charlm has"):
                load_weights(model, path)


def test_an_experts_new_version_is_a_mixtures_too(tmp_path, monkeypatch):
    experts = {
        "gpt": build_model(CONFIGS["modern"], VOCAB),
        "two": build_model(CONFIGS["gpt2"], VOCAB),
    }
    save_weights(MixtureModel(VOCAB, 8, experts), tmp_path / "w")

    monkeypatch.setattr(type(experts["two"]), "version", "2")

    with pytest.raises(CheckpointError, match="version 2 of 2, 1 of its model"):
        load_weights(MixtureModel(VOCAB, 8, experts), tmp_path / "w")


def test_averages_that_no_memory_holds_are_refused_before_they_are_made(trained):
    tokenizer = load_tokenizer(trained / "tokenizer.json")
    config = read_config(b"model: {type: averaging, block_size: 10000000}", "a.yaml")
    weights = trained / "checkpoints" / "step-6" / "model.safetensors"

    with pytest.raises(CheckpointError, match=r"needs 727\.6 TiB of memory.*config\.yaml changed"):
        saved._refuse_excess(config, tokenizer, weights)


@pytest.mark.parametrize(
    ("module", "before"),
    [
        (state, "verify_folder"),
        (saved, "load_weights"),
        (saved, "safe_open"),
        (saved, "_refuse_repeated_names"),
    ],
)
def test_a_checkpoint_that_is_pruned_while_it_is_read_gives_way_to_the_next(
    trained, monkeypatch, module, before
):
    run = RunFolder(trained)
    real, pruned = getattr(module, before), []

    def prune(*arguments):
        if not pruned:
            pruned.append(run.checkpoints.path(6))
            shutil.rmtree(pruned[0])
        return real(*arguments)

    monkeypatch.setattr(module, before, prune)

    assert load_model(run, "last").step == 3


def test_a_checkpoint_that_is_damaged_does_not_give_way(trained):
    run = RunFolder(trained)
    (run.checkpoints.path(6) / "state.json").write_text("{}")

    with pytest.raises(CheckpointError, match=r"state\.json: 2 bytes"):
        load_model(run, "last")
