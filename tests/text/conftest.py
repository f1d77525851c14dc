"""The misbehaving server of the storage tests, for texts that are fetched."""

from tests.storage.server import server

__all__ = ["server"]
