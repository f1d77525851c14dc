import pytest
from pydantic import TypeAdapter, ValidationError

from charlm.config.contexts import PARTS, Contexts

READ = TypeAdapter(Contexts)


def test_numbers_and_lists_of_parts_are_read():
    contexts = [0, 1, 32, ["word", 1], [*PARTS]]

    assert READ.validate_python(contexts) == contexts


@pytest.mark.parametrize(
    ("contexts", "said"),
    [
        ("1", "expected a list of 1 to 64 contexts, got '1'"),
        ([], "expected a list of 1 to 64 contexts, got"),
        ([33], "expected a number from 0 to 32, got 33"),
        ([True], "got a boolean"),
        (["word"], "expected a number or a list, got 'word'.*write \\[word\\]"),
        ([[]], "expected 1 to 64 parts in a context, got 0"),
        ([["words"]], "unknown part 'words'.*use word, word-1"),
        ([[0]], "expected a number from 1 to 32, got 0"),
        ([1, [2], 1], "the context 1 is there twice"),
    ],
)
def test_a_mistake_is_named(contexts, said):
    with pytest.raises(ValidationError, match=said):
        READ.validate_python(contexts)
