#!/usr/bin/env bash
# gguf 0.19.0: GGUFWriter.add_array(key, []) writes no key at all, without an error or a warning.
#
# The format has arrays of length 0: an array is an element type, a count and the elements. The
# writer takes the type from the first element, and returns early if there is none. The reader then
# cannot tell "an empty list" from "never said".
#
# Who meets this: anyone who exports a vocabulary of single characters as a BPE tokenizer. Its list
# of merges is empty, so the file has no `tokenizer.ggml.merges`, which readers of BPE vocabularies
# require.
#
# Output seen (x86-64 Linux, Python 3.11, NumPy 2.4.6):
#   arrays given    tokenizer.ggml.merges (0), tokenizer.ggml.tokens (2)
#   arrays in file  tokenizer.ggml.tokens (2)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "gguf==0.19.0" "numpy==2.4.6"
cd "$folder"
venv/bin/python - <<'PYTHON'
import gguf

writer = gguf.GGUFWriter("vocabulary.gguf", "gpt2")
writer.add_tokenizer_model("gpt2")
writer.add_token_list(["a", "b"])
writer.add_token_merges([])
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()

lists = {
    name: len(field.data)
    for name, field in gguf.GGUFReader("vocabulary.gguf").fields.items()
    if field.types[0] == gguf.GGUFValueType.ARRAY
}
print("arrays given    tokenizer.ggml.merges (0), tokenizer.ggml.tokens (2)")
print("arrays in file ", ", ".join(f"{name} ({count})" for name, count in sorted(lists.items())))
assert lists == {"tokenizer.ggml.tokens": 2}, "the behaviour has changed"
PYTHON
