"""Write with a model that `charlm export --to onnx` exported; it needs onnxruntime and NumPy only.

python onnx_sample.py FOLDER [PROMPT] [CHARACTERS] [TEMPERATURE]
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime

TYPES = {"tensor(int64)": np.int64, "tensor(float)": np.float32}


def write(folder, prompt="\n", count=200, temperature=0.8):
    """Yield the characters that follow a prompt; temperature 0 takes the likeliest each time."""
    step = onnxruntime.InferenceSession(Path(folder, "step.onnx"))
    ids = json.loads(Path(folder, "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    symbols = {number: symbol for symbol, number in ids.items()}
    state = {  # it begins with zeros; a size that is a name is the number of texts, here 1
        one.name: np.zeros([1 if isinstance(n, str) else n for n in one.shape], TYPES[one.type])
        for one in step.get_inputs()[1:]
    }
    noise = np.random.default_rng()
    for i in range(len(prompt) + count):
        if i >= len(prompt):
            draw = noise.gumbel(size=logits.shape) * temperature  # the largest is a fair draw
            prompt += symbols[int(np.argmax(logits + draw))]
            yield prompt[-1]
        given = {"ids": np.array([[ids[prompt[i]]]]), **state}
        logits, *later = step.run(None, given)
        logits, state = logits[0, -1], dict(zip(state, later, strict=True))


if __name__ == "__main__":
    folder, *rest = sys.argv[1:]
    for character in write(folder, *rest[:1], *map(int, rest[1:2]), *map(float, rest[2:3])):
        print(character, end="", flush=True)
    print()
