"""Detection of network file systems, on mount tables of real machines."""

from pathlib import Path

import pytest

from evosearch.checkpoints.cache.mounts import mounts, network_type

CLUSTER = [
    ("/", "ext4"),
    ("/proc", "proc"),
    ("/home", "nfs4"),
    ("/home/me/local", "xfs"),
    ("/scratch", "lustre"),
    ("/data", "ext4"),
    ("/data/shared", "fuse.sshfs"),
    ("/bucket", "fuse.gcsfuse"),
    ("/windows", "fuseblk"),
    ("/mnt/with space", "cifs"),
    ("/tmp", "tmpfs"),
]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/models/base", None),
        ("/home/me/models", "nfs4"),
        ("/home", "nfs4"),
        ("/homely/models", None),  # same prefix, another folder
        ("/home/me/local/models", None),
        ("/home/me/locally", "nfs4"),
        ("/scratch/a/b/c", "lustre"),
        ("/data/models", None),
        ("/data/shared/models", "fuse.sshfs"),
        ("/bucket/x", "fuse.gcsfuse"),
        ("/windows/models", None),
        ("/mnt/with space/models", "cifs"),
        ("/tmp/models", None),
    ],
)
def test_the_nearest_mount_above_a_path_decides(path: str, expected: str | None) -> None:
    assert network_type(Path(path), CLUSTER) == expected
    assert network_type(Path(path), CLUSTER[::-1]) == expected


@pytest.mark.parametrize(
    "kind", ["nfs", "nfs4", "cifs", "smb3", "lustre", "beegfs", "ceph", "glusterfs", "fuse.juicefs"]
)
def test_every_listed_type_is_a_network_file_system(kind: str) -> None:
    assert network_type(Path("/m/x"), [("/", "ext4"), ("/m", kind)]) == kind


def test_a_later_mount_hides_an_earlier_one_at_the_same_mount_point() -> None:
    assert network_type(Path("/m/x"), [("/", "ext4"), ("/m", "nfs"), ("/m", "xfs")]) is None
    assert network_type(Path("/m/x"), [("/", "ext4"), ("/m", "xfs"), ("/m", "nfs")]) == "nfs"


def test_a_network_root_and_an_empty_mount_table() -> None:
    assert network_type(Path("/m/x"), [("/", "nfs")]) == "nfs"
    assert network_type(Path("/m/x"), []) is None


def test_this_machines_table_is_read() -> None:
    found = dict(mounts())
    assert found["/"]
    assert found["/proc"] == "proc"
