import pytest

from tests.fuzz.inputs import seeds
from tests.fuzz.targets import TARGETS


@pytest.fixture(autouse=True)
def _seeds() -> None:
    """Make the seeds before hypothesis draws from them: it must see no other randomness."""
    for name in TARGETS:
        seeds(name)
