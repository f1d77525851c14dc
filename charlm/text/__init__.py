"""From a text to batches of ids. Imports no torch.

Texts are read in chunks, and ids are read from disk as they are needed, so a corpus larger than
memory needs no more memory than a small one.

Read in this order: `raw` (bytes that are not UTF-8), `tokenizer`, `datasets` (texts with a name),
`files` (of a folder), `sources` (where a text comes from), `records` (many short texts), `survey` (of a
list), `unpacking` (compressed files), `decoding` (bytes to characters), `lines`, `columns` (of a
table), `parquet`, `reading` (a text's symbols), `tokens` (ids on disk), `escapes` (rare characters),
`shuffling` (of records), `parts` (of a text), `stretches` (of a large one), `stretch_jobs`, `workers`
(processes), `large`, `scan` (length, alphabet), `corpus` (encoding, splits), `symbol_notes` (on rare
symbols), `borders` and `rows` (of records), `batches`.
"""

from charlm.text.batches import Batches, window_starts
from charlm.text.corpus import Corpus, encode_corpus, open_corpus
from charlm.text.datasets import DATASETS, Dataset
from charlm.text.scan import Scan, scan_text
from charlm.text.sources import Source, open_source
from charlm.text.tokenizer import ByteTokenizer, CharTokenizer, Tokenizer, load_tokenizer
from charlm.text.tokens import IdArray, Split, TokenFile

__all__ = [
    "DATASETS",
    "Batches",
    "ByteTokenizer",
    "CharTokenizer",
    "Corpus",
    "Dataset",
    "IdArray",
    "Scan",
    "Source",
    "Split",
    "TokenFile",
    "Tokenizer",
    "encode_corpus",
    "load_tokenizer",
    "open_corpus",
    "open_source",
    "scan_text",
    "window_starts",
]
