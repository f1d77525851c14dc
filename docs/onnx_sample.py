"""Write with a model that `charlm export --to onnx` exported: onnx_sample.py FOLDER [PROMPT] [CHARACTERS] [TEMPERATURE]."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime

TYPES = {"tensor(int64)": np.int64, "tensor(float)": np.float32}
BOUNDARY = "\U0010ffff"  # before and after each record, in models of records


def write(folder, prompt="", count=200, temperature=0.8):
    """Yield the characters that follow a prompt; temperature 0 takes the likeliest each time."""
    step = onnxruntime.InferenceSession(Path(folder, "step.onnx"))
    ids = json.loads(Path(folder, "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    symbols = {number: symbol for symbol, number in ids.items()}
    opening = next(one for one in (BOUNDARY, "\n", *ids) if one in ids)
    text = opening + prompt if opening == BOUNDARY else prompt or opening
    if unknown := sorted(set(text) - set(ids)):
        sys.exit(f"the model does not know these characters: {str(unknown)[1:-1]}")
    state = {  # it begins with zeros; a size that is a name is the number of texts, here 1
        one.name: np.zeros([1 if isinstance(n, str) else n for n in one.shape], TYPES[one.type])
        for one in step.get_inputs()[1:]
    }
    for i in range(len(text) + count):
        if i >= len(text):
            noise = np.random.default_rng().gumbel(size=logits.shape)  # the largest is a fair draw
            text += symbols[int(np.argmax(logits + noise * temperature))]
            if text[-1] == BOUNDARY:
                return
            yield text[-1]
        logits, *later = step.run(None, {"ids": np.array([[ids[text[i]]]]), **state})
        logits, state = logits[0, -1], dict(zip(state, later, strict=True))


if __name__ == "__main__":
    folder, *rest = sys.argv[1:]
    for character in write(folder, *rest[:1], *map(int, rest[1:2]), *map(float, rest[2:3])):
        print(character, end="", flush=True)
