"""The misbehaving server of the storage tests, for texts that are fetched."""

from hypothesis import settings

from tests.storage.server import server

__all__ = ["server"]

# Some examples wait for the disk, which is slow now and then: that is no failure.
settings.register_profile("charlm", deadline=None)
settings.load_profile("charlm")
