import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from charlm.errors import UsageError
from charlm.evaluation.protocols import choose, sliding, spread_windows, stream, windows
from charlm.models import BigramModel
from tests.evaluation.fakes import Remembers, Window


def targets(passes):
    """List the positions that are scored, with where the window of each begins."""
    return [
        (int(start) + i, int(start))
        for cut in passes
        for start in cut.starts
        for i in range(1 + cut.skip, cut.length + 1)
    ]


@given(chars=st.integers(1, 80), block=st.integers(1, 12), rows=st.integers(1, 7))
def test_windows_score_each_character_once_within_its_own_window(chars, block, rows):
    found = targets(windows(block).passes(chars, rows))

    assert found == [(i, (i - 1) // block * block) for i in range(1, chars + 1)]


@given(chars=st.integers(1, 80), block=st.integers(1, 12), data=st.data(), rows=st.integers(1, 7))
def test_sliding_windows_score_each_character_once_in_the_first_that_reaches_it(
    chars, block, data, rows
):
    stride = data.draw(st.integers(1, block))

    passes = list(sliding(block, stride).passes(chars, rows))

    first_to_reach = [max(0, -(-(i - block) // stride)) * stride for i in range(1, chars + 1)]
    assert targets(passes) == list(enumerate(first_to_reach, start=1))
    assert all(i - start > block - stride for i, start in targets(passes) if i > block)
    assert all(cut.length <= block and len(cut.starts) <= rows for cut in passes)


@given(chars=st.integers(1, 200), block=st.integers(1, 12), limit=st.integers(1, 300))
def test_a_limit_spreads_whole_windows_over_the_text(chars, block, limit):
    block = min(block, chars)
    scored = [i for i, _ in targets(spread_windows(chars, block, limit, rows=3))]

    assert len(set(scored)) == len(scored) <= max(limit, block)
    assert len(scored) % block == 0
    assert min(scored) >= 1
    assert max(scored) <= chars
    if chars > limit >= 2 * block:
        assert scored[0] == 1
        assert scored[-1] > chars // 2 - block  # the second half is not forgotten


@pytest.mark.parametrize("memory", [1, 2, 6])
def test_windows_of_a_stream_overlap_by_the_memory(memory, monkeypatch):
    monkeypatch.setattr("charlm.evaluation.protocols.CHARS_A_PASS", 4)

    found = targets(stream(Remembers(memory)).passes(40, 1))

    assert [i for i, _ in found] == list(range(1, 41))
    assert all(start == 0 or i - start >= memory for i, start in found)
    assert len({start for _, start in found}) >= 9  # and they are many


def test_a_model_that_forgets_everything_can_be_streamed():
    model = Remembers(1)
    model.memory = 0

    found = targets(stream(model).passes(40_000, 1))

    assert [i for i, _ in found] == list(range(1, 40_001))
    assert all(start < i for i, start in found)  # it is still shown a character to answer at


def test_models_that_look_a_probability_up_are_shown_more_at_once():
    class Quick(Remembers):
        def log_probability(self, idx, targets):
            return torch.zeros(idx.shape)

    assert stream(Quick(3)).stride == 1 << 18
    assert stream(Quick(3), all_logits=True).stride == 16_384
    assert stream(BigramModel(4096, 8)).stride == 4096  # times V: 64 MiB of logits


def test_without_numbers_the_window_is_the_models_and_the_stride_its_half():
    model = Window(block_size=9)

    assert (choose(model, "windows").block_size, choose(model, "windows").stride) == (9, 9)
    assert (choose(model, "sliding").block_size, choose(model, "sliding").stride) == (9, 4)
    assert choose(Window(block_size=1), "sliding").stride == 1
    assert choose(Remembers(2), "stream").block_size is None


def test_a_model_of_any_length_may_be_asked_for_longer_windows():
    assert choose(Remembers(2), "windows", block_size=1000).length == 1000


@pytest.mark.parametrize(
    ("name", "block_size", "stride", "core"),
    [
        ("sliding", None, 0, "stride=0: expected 1 to 12, the length of the window"),
        ("sliding", 8, 9, "stride=9: expected 1 to 8"),
        ("windows", None, 3, "stride=3: windows has no stride; use it with protocol=.sliding."),
        ("windows", 13, None, "block_size=13: this model sees at most 12 characters"),
        ("sliding", 13, None, "block_size=13: this model sees at most 12 characters"),
        (
            "stream",
            None,
            None,
            "this model sees at most 12 characters; use windows, or sliding",
        ),
        ("stream", 4, None, "block_size=4: stream has no window"),
    ],
)
def test_what_a_protocol_cannot_do_is_refused(name, block_size, stride, core):
    with pytest.raises(UsageError, match=core):
        choose(Window(), name, block_size, stride)


def test_a_window_larger_than_a_pass_is_refused():
    with pytest.raises(UsageError, match=r"at most 16,384 characters; use protocol=.stream."):
        choose(Remembers(2), "windows", block_size=10**9)


@pytest.mark.parametrize("name", ["windows", "sliding"])
def test_a_models_own_window_is_no_larger_than_a_pass_either(name):
    model = Remembers(2)
    model.block_size = 16_385

    with pytest.raises(UsageError, match=r"model\.block_size=16385: .* at most 16,384 characters"):
        choose(model, name)
    assert choose(model, name, block_size=16_384).length == 16_384


def test_a_billion_characters_are_cut_one_pass_at_a_time():
    passes = sliding(256, 1).passes(10**9, rows=64)

    np.testing.assert_array_equal(next(passes).starts, [0])
    np.testing.assert_array_equal(next(passes).starts, np.arange(1, 65))
