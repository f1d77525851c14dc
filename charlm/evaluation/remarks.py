"""What is odd about a text that is about to be trained on."""

from charlm.config import DataConfig
from charlm.evaluation.repeats import validation_notes
from charlm.text import Corpus, Scan, Tokenizer
from charlm.text.symbol_notes import rare_note, unseen_note


def text_notes(scan: Scan, corpus: Corpus, tokenizer: Tokenizer, data: DataConfig) -> list[str]:
    """Return remarks on a text and its parts, without which a run may be in vain."""
    found = [rare_note(scan, data), unseen_note(scan, corpus, tokenizer)]
    in_order = scan.survey.notes(important=True) if scan.survey else []
    return [*filter(None, found), *in_order, *validation_notes(corpus, tokenizer)]
