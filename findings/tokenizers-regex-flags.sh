#!/usr/bin/env bash
# Hugging Face tokenizers 0.23.3: in `Regex`, (?m) makes the dot match a newline, and (?s) is refused.
#
# Patterns are Oniguruma's in Ruby's syntax. In Python, Perl and Rust (?s) means "dot matches
# newline" and (?m) means "^ and $ match at each line"; in Ruby's syntax (?m) has the first meaning,
# the second is always on, and there is no (?s).
#
# Who meets this: anyone who writes a tokenizer of single characters. Splitting by `Regex(".")`
# leaves a run of newlines together as one piece, which is unknown to the vocabulary. The usual
# cure, (?s), is an error. The one that works, (?m), does nothing of the kind where the same pattern
# is tried with Python's `re`.
#
# Output seen (x86-64 Linux, Python 3.11), for the text "a\n\nb":
#   tokenizers  .      ['a', '\n\n', 'b']
#   tokenizers  (?s).  refused: Oniguruma error: undefined group option
#   tokenizers  (?m).  ['a', '\n', '\n', 'b']
#   Python re   (?s).  ['a', '\n', '\n', 'b']
#   Python re   (?m).  ['a', 'b']
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "tokenizers==0.23.3"
"$folder/venv/bin/python" - <<'PYTHON'
import re

from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

TEXT = "a\n\nb"


def pieces(pattern):
    try:
        split = Split(Regex(pattern), "isolated")
    except Exception as error:  # the library raises the bare class
        return f"refused: {error}"
    return [piece for piece, _ in split.pre_tokenize_str(TEXT)]


ours = {pattern: pieces(pattern) for pattern in (".", "(?s).", "(?m).")}
python = {pattern: re.findall(pattern, TEXT) for pattern in ("(?s).", "(?m).")}
for pattern, result in ours.items():
    print(f"tokenizers  {pattern:5}  {result}")
for pattern, result in python.items():
    print(f"Python re   {pattern:5}  {result}")
assert ours["."] == ["a", "\n\n", "b"], "the behaviour has changed"
assert "undefined group option" in ours["(?s)."], "the behaviour has changed"
assert ours["(?m)."] == python["(?s)."] == ["a", "\n", "\n", "b"], "the behaviour has changed"
PYTHON
