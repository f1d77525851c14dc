"""Named texts: where they come from, their licence, size and checksum."""

import os
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from charlm.errors import DataError, MachineError
from charlm.storage.atomic import put_in_place
from charlm.storage.download import download, matches
from charlm.storage.machine import machine_errors

_CHUNK = 1 << 16


@dataclass(frozen=True)
class Pin:
    """A file's name, size in bytes and SHA-256."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Dataset:
    """A text that is downloaded once and kept."""

    name: str  # in `data.source`
    about: str  # one line of description
    licence: str
    url: str
    text: Pin  # the file to train on
    archive: Pin | None = None  # the zip file whose only member it is, if any

    def path(self) -> Path:
        """Return where the text is or will be kept."""
        return data_folder() / self.text.name

    def fetch(self, progress: Callable[[int, int], None] = lambda done, total: None) -> Path:
        """Return the path of the text, downloading and checking it first if needed.

        Args:
            progress: Called during the download with the bytes so far and in total.

        Raises:
            MachineError: The network or the disk failed.
            DataError: The downloaded file, or one in its place, is not the expected one.
        """
        path = self.path()
        if path.exists():
            with machine_errors(path):
                if matches(path, self.text.size, self.text.sha256):
                    return path
            mend = f"move it away, {_as_it_is(path)}"
            raise DataError(path, f"is not the pinned {self.name}", mend)
        pin = self.archive or self.text
        target = path.with_name(pin.name)
        try:
            download(self.url, target, size=pin.size, sha256=pin.sha256, progress=progress)
        except MachineError as error:
            if error.where == self.url:  # the network; the disk has advice of its own
                own = f"add a copy of yours (charlm data add {self.name} FILE)"
                mend = f"try again, {own}, or use python-docs, which needs no network"
                raise error.replace(mend=mend) from None
            raise
        if self.archive:
            self._unpack(target)
            target.unlink()
        return path

    def add(self, file: Path) -> Path:
        """Add a copy that the user already has, after the same check and with the same errors."""
        if not file.is_file():
            raise DataError(file, "not found or not a regular file")
        with machine_errors(file):
            if self.archive and matches(file, self.archive.size, self.archive.sha256):
                self._unpack(file)
            elif matches(file, self.text.size, self.text.sha256):
                self.path().parent.mkdir(parents=True, exist_ok=True)
                part = self.path().with_name(self.text.name + ".part")
                part.unlink(missing_ok=True)  # which may be a link
                shutil.copyfile(file, part)
                if not matches(part, self.text.size, self.text.sha256):
                    part.unlink()
                    raise DataError(file, "changed while it was being copied", "try again")
                put_in_place(part, self.path())
            else:
                pinned = f"{self.text.size:,} bytes, SHA-256 {self.text.sha256[:16]}..."
                mend = f"check the file, {_as_it_is(file)}"
                raise DataError(file, f"is not {self.name} ({pinned})", mend)
        return self.path()

    def _unpack(self, archive: Path) -> None:
        """Extract the only member of a zip, or stop if it exceeds its expected size."""
        path = self.path()
        part = path.with_name(path.name + ".part")
        with machine_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            part.unlink(missing_ok=True)  # which may be a link
            try:
                with (
                    zipfile.ZipFile(archive) as zipped,
                    zipped.open(self.text.name) as member,
                    part.open("wb") as file,
                ):
                    # A zip bomb goes beyond the expected size.
                    while file.tell() <= self.text.size and (chunk := member.read(_CHUNK)):
                        file.write(chunk)
            except (zipfile.BadZipFile, KeyError) as error:
                raise DataError(archive, f"not the expected archive ({error})") from None
            if not matches(part, self.text.size, self.text.sha256):
                part.unlink()
                raise DataError(archive, f"its member {self.text.name!r} is not the pinned text")
            put_in_place(part, path)


def _as_it_is(file: Path) -> str:
    return f"or train on it as it is: data.source={file}"


def data_folder() -> Path:
    """Return where downloaded texts are kept: $CHARLM_DATA, or `data/` in the current folder."""
    return Path(os.environ.get("CHARLM_DATA") or "data")


DATASETS = {
    dataset.name: dataset
    for dataset in [
        Dataset(
            name="shakespeare",
            about="Tiny Shakespeare, 40,000 lines: the usual benchmark",
            licence="public domain",
            url="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
            text=Pin(
                "tinyshakespeare.txt",
                1_115_394,
                "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
            ),
        ),
        Dataset(
            name="names",
            about="makemore's 32,033 first names, one per line",
            licence="public domain (US Social Security Administration)",
            url="https://raw.githubusercontent.com/karpathy/makemore/master/names.txt",
            text=Pin(
                "names.txt",
                228_145,
                "0a30b5557f192f32ab962680889aac5f6fda0f4cecf40a6d0b5694f58ea8cc4d",
            ),
        ),
        Dataset(
            name="enwik8",
            about="100 MB of English Wikipedia; use data.unit=bytes",
            licence="CC BY-SA 3.0 and GFDL",
            url="https://mattmahoney.net/dc/enwik8.zip",
            archive=Pin(
                "enwik8.zip",
                36_445_475,
                "547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc",
            ),
            text=Pin(
                "enwik8",
                100_000_000,
                "2b49720ec4d78c3c9fabaee6e4179a5e997302b3a70029f30f2d582218c024a8",
            ),
        ),
        Dataset(
            name="text8",
            about="100 MB of cleaned Wikipedia: a to z and space",
            licence="CC BY-SA 3.0 and GFDL",
            url="https://mattmahoney.net/dc/text8.zip",
            archive=Pin(
                "text8.zip",
                31_344_016,
                "a6640522afe85d1963ad56c05b0ede0a0c000dddc9671758a6cc09b7a38e5232",
            ),
            text=Pin(
                "text8",
                100_000_000,
                "6e890197040d37d85beb962ae1f041ff1d9a9ca8d20c7d99c85027eebf51dca7",
            ),
        ),
    ]
}
