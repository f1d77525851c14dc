"""charlm explain --processes, on GPUs by published numbers and on a machine of round numbers."""

import json
import re

import pytest

from charlm.config import load_config
from charlm.costs.cores import Cores, Link, Times
from charlm.costs.demands import STRATEGIES
from charlm.costs.devices import GPUS
from charlm.costs.estimate import rows
from charlm.costs.work import work_of

H100 = ("-c", "gpt", "--vocab-size", 65, "--gpus", "h100")


@pytest.fixture
def _two_cores(monkeypatch):
    times = Times(a_pass=0.01, a_window=0.005, adamw=0.003, muon=0.01, rest=0.001)
    found = Cores(
        2,
        times,
        times,
        times,
        shared=Link(1e-4, 1e-9),
        gloo=Link(1e-4, 1e-9),
        fsdp2=Link(1e-4, 1e-9),
    )
    monkeypatch.setattr("charlm.costs.measuring.measured", lambda *_: found)
    monkeypatch.setattr("charlm.config.cores.cores_are_taken", lambda: False)


@pytest.mark.parametrize(("kind", "processes"), [("rtx4090", 1), ("l4", 4), ("rtx4090", 1024)])
def test_a_table_fits_a_terminal_of_80_by_24(charlm, kind, processes):
    keys = "train.batch_size=1048576", "model.n_layer=96", "model.n_embd=12288", "model.n_head=96"

    result = charlm("explain", *H100[:-1], kind, "--processes", processes, *keys)

    lines = result.stdout.splitlines()
    assert (result.code, result.stderr) == (0, "")
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 20
    header = next(n for n, line in enumerate(lines) if line.startswith("strategy"))
    table = lines[header + 1 : lines.index("", header)]
    marked = [line for line in table if line.startswith("!")]
    assert len(table) - len(marked) == (1 if processes == 1 else len(STRATEGIES))
    assert bool(marked) == any("!" in line for line in table)


def test_the_table_shows_what_was_estimated(charlm):
    result = charlm("explain", *H100, "--processes", 4)

    config = load_config("gpt")
    found = rows(config, work_of(config, 65), GPUS["h100"], 4)
    for one in found:
        (line,) = (x for x in result.stdout.splitlines() if x.startswith(f"{one.strategy}  "))
        assert line.split("  ")[0] == one.strategy
        assert f"{one.seconds * 1e3:.3g} ms" in line
        assert f"{one.bytes_held / 2**20:.3g} MiB" in line
    assert "best: train.parallel=" in result.stdout


def test_the_json_object_has_units_in_its_names(charlm):
    said = json.loads(charlm("explain", *H100, "--processes", 12, "--json").stdout)

    assert {name: type(value) for name, value in said.items()} == {
        "model": str,
        "weights": int,
        "batch_windows": int,
        "batch_chars": int,
        "processes": int,
        "machine": str,
        "strategies": list,
        "best": dict,
        "most_that_pay": dict,
    }
    assert [one["strategy"] for one in said["strategies"]] == list(STRATEGIES)
    for one in (*said["strategies"], said["best"], said["most_that_pay"]):
        assert {name: type(value) for name, value in one.items()} == {
            "strategy": str,
            "processes": int,
            "micro_batch_windows": int,
            "step_seconds": float,
            "compute_seconds": float,
            "update_seconds": float,
            "exchange_seconds": float,
            "latency_seconds": float,
            "overlaps": bool,
            "chars_per_second": float,
            "speedup": float,
            "efficiency": float,
            "memory_bytes": int,
            "memory_bytes_by_purpose": dict,
            "sent_bytes": int,
            "fits": bool,
        }
    assert said["strategies"][0]["speedup"] == 1


@pytest.mark.usefixtures("_two_cores")
def test_without_gpus_this_machine_is_measured(charlm):
    result = charlm("explain", "-c", "gpt", "--vocab-size", 65, "--processes", 4)

    assert (
        result.stderr
        == "charlm: note: measuring this machine for some seconds; nothing else should run\n"
    )
    assert "4 processes of 1 thread (OMP_NUM_THREADS=1) on 2 cores, measured here" in result.stdout
    assert "best: one process (train.parallel=none)" in result.stdout


@pytest.mark.usefixtures("_two_cores")
def test_busy_cores_are_told_before_they_are_measured(charlm, monkeypatch):
    monkeypatch.setattr("charlm.config.cores.cores_are_taken", lambda: True)

    result = charlm("explain", "-c", "gpt", "--vocab-size", 65, "--processes", 2)

    said = "charlm: note: other programs keep the cores busy, so the times will be wrong"
    assert result.stderr.splitlines()[1:] == [said]


@pytest.mark.usefixtures("_two_cores")
def test_how_long_it_takes_to_measure_a_large_model_is_told(charlm, monkeypatch):
    monkeypatch.setattr("charlm.costs.cores.own_cores", lambda: 2)
    monkeypatch.setattr("charlm.config.memory.machine_bytes", lambda: 1 << 36)
    keys = "model.n_layer=12", "model.n_embd=768", "model.n_head=12", "model.block_size=1024"

    result = charlm("explain", "-c", "gpt", "--vocab-size", 65, "--processes", 2, *keys)

    assert re.fullmatch(
        r"charlm: note: measuring this machine for about \d+ minutes; .*\n", result.stderr
    )


@pytest.mark.usefixtures("_two_cores")
def test_what_does_not_fit_into_memory_is_not_measured(charlm, refused):
    keys = "model.n_layer=96", "model.n_embd=12288", "model.n_head=96"

    (line,) = refused(5, "explain", "-c", "gpt", "--vocab-size", 65, "--processes", 2, *keys)

    assert line.startswith("model and train: measuring takes about ")
    assert line.endswith("; ask for --gpus h100")


def test_a_share_of_the_peak_is_an_assumption_that_can_be_changed(charlm):
    keys = "train.batch_size=8192", "--json"
    half, whole = (
        json.loads(charlm("explain", *H100, *keys, "--share", share).stdout) for share in (0.5, 1.0)
    )

    assert half["strategies"][0]["compute_seconds"] == pytest.approx(
        2 * whole["strategies"][0]["compute_seconds"]
    )


@pytest.mark.parametrize("preset", ["ngram", "context-mixing", "mixture"])
def test_one_process_trains_what_is_counted_or_joined(charlm, preset):
    said = charlm("explain", "-c", preset, "--processes", 4).stdout
    as_json = json.loads(charlm("explain", "-c", preset, "--gpus", "l4", "--json").stdout)

    assert said.startswith(f"{preset}: one process trains it, because ")
    assert said.count("\n") == 1
    assert as_json == {"model": preset, "processes": 1, "strategies": []}


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--gpus", "gtx"), f"--gpus: unknown kind 'gtx'; choose {', '.join(GPUS)}"),
        (
            ("--processes", 5),
            "5 processes: cannot share 12 windows in a step; start 1, 2, 3, 4, 6 or 12 of them, or "
            "change train.batch_size",
        ),
        (
            ("--processes", 4, "train.micro_batch_size=6"),
            "4 processes: cannot share 2 micro-batches in a step; start 1 or 2 of them, or change "
            "train.micro_batch_size",
        ),
        (
            ("--share", 0.3),
            "--share 0.3: a share of a GPU's peak, but this machine is measured; add --gpus KIND",
        ),
        (
            ("--json",),
            "--json: prints an estimate for several processes, and no number is given; add "
            "--processes N",
        ),
    ],
)
def test_mistakes_are_refused_in_a_line(refused, arguments, line):
    assert refused(2, "explain", "-c", "gpt", *arguments) == [line]
