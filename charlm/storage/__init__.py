"""The only code that writes durably: atomic files and folders, manifests, locks, downloads.

Read `atomic` first (what a commit is), then `manifest`, `lock`, `download`. It knows bytes only: no
configuration, no torch.
"""

from charlm.storage.atomic import new_folder, write_file
from charlm.storage.lock import folder_lock, refuse_locked
from charlm.storage.machine import machine_errors
from charlm.storage.manifest import OtherFormatError, read_manifest, verify_folder

__all__ = [
    "OtherFormatError",
    "folder_lock",
    "machine_errors",
    "new_folder",
    "read_manifest",
    "refuse_locked",
    "verify_folder",
    "write_file",
]
