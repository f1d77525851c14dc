"""Character-level language models, from the bigram table to a modern GPT.

Reading order is import order: `errors`, `config`, `storage`, `text`, `models`, `evaluation`,
`sampling`, `training`, `cli`. Each package imports only from those before it, so the course can
be read from top to bottom. `charlm.models` is where the lessons are.
"""

__version__ = "0.1.0"
