"""Programs of npm read what was exported: llama.cpp, and ONNX Runtime in Node and in Chromium.

`scripts/exchange` installs them into the folder that CHARLM_NODE names.
"""

import functools
import http.server
import json
import os
import shutil
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

import charlm as package
from tests.browser.conftest import browser  # noqa: F401 -- a fixture
from tests.conftest import TEXT
from tests.exchange.awkward import AWKWARD

NODE = os.environ.get("CHARLM_NODE", "")
HERE = Path(__file__).parent
DOCS = HERE.parents[1] / "docs"
LETTERS = "".join(sorted({*AWKWARD, "ä", "ж", "猫"} - {"\u2581"}))
PAGE = """<!doctype html><pre id=out></pre><script type=module>
import * as ort from "/node_modules/onnxruntime-web/dist/ort.wasm.min.mjs";
import {write} from "/onnx_sample.mjs";
ort.env.wasm.numThreads = 1;
const read = async (name) => new Uint8Array(await (await fetch(`/out/${name}`)).arrayBuffer());
let text = "";
for await (const one of write(ort, read, PROMPT, 100, 0)) text += one;
window.done = text;
</script>"""

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        not (NODE and shutil.which("node")), reason="scripts/exchange installs programs of npm"
    ),
]


@pytest.fixture
def node(tmp_path):
    """Run a script of Node beside the packages; return what it says."""
    (tmp_path / "node_modules").symlink_to(Path(NODE) / "node_modules")

    def run(script, *arguments):
        copy = shutil.copy(script, tmp_path)
        done = subprocess.run(
            ["node", copy, *map(str, arguments)], capture_output=True, text=True, timeout=200
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def trained_on(text, style, **sizes):
    Path("text.txt").write_text(text, encoding="utf-8", newline="")
    model = {"type": "gpt", "style": style, "n_layer": 2, "n_head": 2, "n_embd": 32, **sizes}
    train = {"max_steps": 40, "batch_size": 8, "eval_every": 40, "warmup_steps": 5}
    config = {"model": model, "train": train, "eval": {"baselines": False}}
    return package.train(config, Path("text.txt"), out="run")


@pytest.mark.parametrize(
    "text", [TEXT, LETTERS * 40, TEXT + LETTERS * 5], ids=["plain", "awkward", "both"]
)
def test_llama_cpp_has_the_same_ids_probabilities_and_text(node, tmp_path, text):
    trained_on(text, "gpt2", block_size=256)
    package.export("run", "out", "gguf")
    ours, part, prompt = package.load("run"), text[200:300], text[10:20]
    asked = {"file": str(tmp_path / "out/model.gguf"), "text": part, "prompt": prompt}

    said = json.loads(node(HERE / "llama.mjs", json.dumps(asked | {"count": 200, "size": 256})))

    ids = ours.tokenizer.encode(part)
    assert said["ids"] == ids.tolist()
    assert said["back"] == part
    with torch.no_grad():
        expected = ours.module(torch.from_numpy(ids.astype("int64"))[None])[0].softmax(-1)
    found, symbols = np.array(said["probabilities"]), ours.tokenizer.vocab_size
    assert np.abs(found[:, :symbols] - expected.numpy()).max() < 2e-4
    assert found[:, symbols:].max() < 1e-30
    assert min(said["strange"]) >= symbols
    assert said["written"] == ours.generate(prompt, temperature=0, max_new_chars=200)


@pytest.fixture
def shared(tmp_path):
    """A folder with an export, the example and the packages; and what the run writes."""
    trained_on(TEXT, "modern", block_size=16, n_gram=3)
    package.export("run", "out", "onnx")
    return package.load("run").generate("the dog", temperature=0, max_new_chars=100)


def test_the_example_writes_the_same_in_node(shared, node):
    assert node(DOCS / "onnx_sample.mjs", "out", "the dog", 100, 0) == f"{shared}\n"
    assert len(node(DOCS / "onnx_sample.mjs", "out", "the dog", 50)) == 51


def test_the_example_writes_the_same_in_chromium(shared, node, tmp_path, browser):  # noqa: F811
    shutil.copy(DOCS / "onnx_sample.mjs", tmp_path)
    (tmp_path / "index.html").write_text(PAGE.replace("PROMPT", '"the dog"'))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page, errors = browser.new_page(), []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"http://127.0.0.1:{server.server_port}/index.html")
        page.wait_for_function("window.done !== undefined", timeout=60_000)
        said = page.evaluate("window.done")
        page.close()
        server.shutdown()
    assert (said, errors) == (shared, [])
