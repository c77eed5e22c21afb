"""Mapped pages are let go of, and come back when they are read."""

import mmap
import sys
from pathlib import Path

import pytest

from styleinv.runtime.mapped_pages import release_mapped_pages

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux says in /proc what is resident")
SIZE = 2**20


def resident(path: Path) -> int:
    """Kilobytes of a mapped file that are in this process's memory."""
    kilobytes, counting = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            counting = line.endswith(str(path))
        elif counting and line.startswith("Rss:"):
            kilobytes += int(line.split()[1])
    return kilobytes


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a folder" / "weights.bin"
    path.parent.mkdir()
    path.write_bytes(bytes(range(256)) * (SIZE // 256))
    return path


def test_pages_go_and_come_back(file):
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), SIZE, prot=mmap.PROT_READ) as mapped:
        before = bytes(mapped)
        assert resident(file) == SIZE // 1024
        release_mapped_pages(file.parent)
        assert resident(file) == 0
        assert bytes(mapped) == before


def test_other_folders_and_what_was_written_stay(file, tmp_path):
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), SIZE, access=mmap.ACCESS_COPY) as mapped:
        mapped[0] = 77  # in this process alone; letting go of it would lose it
        release_mapped_pages(file.parent)
        assert mapped[0] == 77
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), SIZE, prot=mmap.PROT_READ) as mapped:
        assert bytes(mapped)[:2] == b"\0\1"
        release_mapped_pages(tmp_path / "a fold")
        assert resident(file) == SIZE // 1024
