"""The only code that writes durably: atomic files and folders, manifests, locks, downloads.

Read `atomic` first (what a commit is), then `manifest`, `lock`, `download`, and `run_folder`,
which lays a run out with them. Imports no torch.
"""

from charlm.storage.atomic import new_folder, write_file
from charlm.storage.lock import folder_lock, refuse_locked
from charlm.storage.machine import machine_errors
from charlm.storage.manifest import OtherFormatError, read_manifest, verify_folder
from charlm.storage.run_folder import RunFolder, find_run, next_free_name

__all__ = [
    "OtherFormatError",
    "RunFolder",
    "find_run",
    "folder_lock",
    "machine_errors",
    "new_folder",
    "next_free_name",
    "read_manifest",
    "refuse_locked",
    "verify_folder",
    "write_file",
]
