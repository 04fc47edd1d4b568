"""Detection of network file systems; models on them are copied to local disk before they are mapped."""

import os
from collections.abc import Sequence
from pathlib import Path

import psutil

NETWORK = frozenset(
    ("9p", "afs", "beegfs", "ceph", "cifs", "glusterfs", "gpfs", "lustre", "nfs", "nfs4", "pvfs2", "smb3", "smbfs")
)
FUSE = "fuse."  # object stores, sshfs, glusterfs and similar; local disks are `fuseblk`

Mount = tuple[str, str]  # (mount point, file system type)


def mounts() -> list[Mount]:
    """Return the mounts of this machine, in the order of the mount table."""
    return [(part.mountpoint, part.fstype) for part in psutil.disk_partitions(all=True)]


def network_type(path: Path, mounted: Sequence[Mount]) -> str | None:
    """Return the type of the network file system that contains a path; None if the path is local.

    Args:
        path: Absolute path without links.
        mounted: Mounts in the order of the mount table; a later mount hides an earlier one at the same mount point.
    """
    longest, found = -1, ""
    for point, kind in mounted:
        place = os.path.normpath(point)
        inside = os.path.isabs(place) and os.path.commonpath((place, path)) == place
        if inside and len(place) >= longest:
            longest, found = len(place), kind
    return found if found in NETWORK or found.startswith(FUSE) else None
