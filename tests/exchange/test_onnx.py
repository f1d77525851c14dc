"""ONNX Runtime computes what a model does, also past its block. `scripts/exchange` installs it."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import charlm as package
from tests.exchange.graphs import BLOCK, MODELS, V, built

pytest.importorskip("onnx", reason="scripts/exchange installs it")
pytest.importorskip("onnxscript", reason="scripts/exchange installs it")
onnxruntime = pytest.importorskip("onnxruntime", reason="scripts/exchange installs it")

from charlm.exchange import onnx_form, steps  # noqa: E402

pytestmark = pytest.mark.timeout(600)  # torch takes a second or more for each graph


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the graphs of all small models."""
    folder = tmp_path_factory.mktemp("graphs")
    command = [sys.executable, "-m", "tests.exchange.graphs", str(folder)]
    here = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


def texts(count, length):
    return torch.randint(V, (count, length), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [(1, 1), (3, BLOCK)])
@pytest.mark.parametrize("name", MODELS)
def test_the_whole_graph_has_the_models_logits(folder, name, shape):
    model, idx = built(name), texts(*shape)
    path = folder / f"{name}.model.onnx"
    assert path.exists() == (model.memory is not None)
    if not path.exists():
        return

    (logits,) = onnxruntime.InferenceSession(path).run(None, {"ids": idx.numpy()})

    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(logits), model(idx), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("count", "at_once"), [(1, False), (3, False), (3, True)])
@pytest.mark.parametrize("name", MODELS)
def test_the_step_goes_on_past_the_block(folder, name, count, at_once):
    model, idx = built(name), texts(count, 3 * BLOCK + 2)
    step = steps.step_of(model)
    lengths = list(step.pieces(idx.shape[1])) if at_once else [1] * idx.shape[1]
    graph = onnxruntime.InferenceSession(folder / f"{name}.step.onnx")
    names = [one.name for one in graph.get_inputs()]
    state, found = [one.numpy() for one in step.start(count)], []

    for piece in idx.split(lengths, dim=1):
        logits, *state = graph.run(None, dict(zip(names, (piece.numpy(), *state), strict=True)))
        found.append(torch.from_numpy(logits))

    with torch.no_grad():
        expected, _ = model.go_on(idx, model.start(count))
    # The scan of minGRU, over logarithms, is less exact than its formula, which the graph has.
    atol = 1e-4 if name == "mingru" else 1e-5
    torch.testing.assert_close(torch.cat(found, dim=1), expected, rtol=0, atol=atol)


@pytest.fixture
def exported(charlm, tiny):
    """A trained run and its export, in a folder that is named in neither."""
    keys = ["model.n_gram=3", "train.max_steps=2", "eval.baselines=false", "-q", "--out", "run"]
    assert charlm("train", "--config", "tiny.yaml", *keys).code == 0
    command = [sys.executable, "-m", "charlm", "export", "run", "out", "--to", "onnx", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_an_export_says_what_it_is_and_not_where_it_was_made(exported, tmp_path):
    assert exported["difference"] < onnx_form.MOST
    assert {path.name for path in Path("out").iterdir()} >= {"model.onnx", "step.onnx", "README.md"}
    source = str(Path(package.__file__).parent).encode()
    for path in Path("out").iterdir():
        data = path.read_bytes()
        assert not [one for one in (source, str(tmp_path).encode(), b"quick brown") if one in data]


def test_the_code_of_the_card_and_of_the_example_write_what_the_run_writes(exported, capsys):
    ours = package.load("run")
    code = Path("out/README.md").read_text().partition("```python\n")[2].partition("```")[0]

    assert "temperature = np.random.default_rng(), 0.8 " in code
    exec(code.replace("FOLDER", "out").replace("(), 0.8", "(), 0"), {})

    expected = ours.generate("\n", temperature=0, max_new_chars=100)
    assert capsys.readouterr().out == f"\n{expected}\n"
    example = Path(package.__file__).parents[1] / "docs/onnx_sample.py"
    spec = importlib.util.spec_from_file_location("onnx_sample", example)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    long = ours.generate("the dog", temperature=0, max_new_chars=1000)
    assert "".join(module.write("out", "the dog", 1000, temperature=0)) == long
    with pytest.raises(SystemExit, match=r"^the model does not know these characters: '#', '☃'$"):
        next(module.write("out", "#the ☃#"))
    drawn = "".join(module.write("out", "the dog", 50))
    assert len(drawn) == 50
