"""Tars made in memory."""

import io
import tarfile
from collections.abc import Sequence


def tar_of(members: Sequence[tuple[str, bytes]]) -> bytes:
    """The bytes of a tar with members of these names and contents."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return file.getvalue()
