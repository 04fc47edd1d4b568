"""Which folders lie on other machines: models are copied from there once, and mapped here."""

import os
from collections.abc import Sequence
from pathlib import Path

import psutil

NETWORK = frozenset(
    ("9p", "afs", "beegfs", "ceph", "cifs", "glusterfs", "gpfs", "lustre", "nfs", "nfs4", "pvfs2", "smb3", "smbfs")
)
FUSE = "fuse."  # object stores, sshfs, glusterfs and kin; disks of this machine are `fuseblk`

Mount = tuple[str, str]  # where it is mounted, and its type


def mounts() -> list[Mount]:
    """What is mounted on this machine, in order."""
    return [(part.mountpoint, part.fstype) for part in psutil.disk_partitions(all=True)]


def network_type(path: Path, mounted: Sequence[Mount]) -> str | None:
    """The type of the network file system that a path lies on; None: it lies on this machine.

    Args:
        path: absolute, links followed.
        mounted: in the order of the mount table: of two at one place the later one covers the earlier.
    """
    longest, found = -1, ""
    for point, kind in mounted:
        place = os.path.normpath(point)
        inside = os.path.isabs(place) and os.path.commonpath((place, path)) == place
        if inside and len(place) >= longest:
            longest, found = len(place), kind
    return found if found in NETWORK or found.startswith(FUSE) else None
