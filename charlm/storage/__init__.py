"""All durable writing. It knows bytes only: no configuration, no torch.

Read in this order: `machine` (errors of the operating system), `regular` (no links, no pipes),
`json_file`, `manifest` (a folder's files, with SHA-256), `atomic` (all-or-nothing writes), `lock` (one
writer), `download`.
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
