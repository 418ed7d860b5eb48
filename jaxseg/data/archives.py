"""Files under one root, read where they are: a folder's, or the members of zip and tar archives, never unpacked.

In: paths. Out: a `FileTree`: names, sizes and times, and a way to read each. Anything wrong is an `InputError` naming the file.
"""

import dataclasses
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

from jaxseg.errors import InputError
from jaxseg.files import visible_files


@dataclasses.dataclass(frozen=True)
class FileTree:
    """The files under one root, by relative name: a folder's, or the members of archives.

    stamps: name -> (size in bytes, modification time), to notice changes. open: name -> bytes.
    where: name -> how to call that file in a message.
    """

    stamps: dict[str, tuple[int, float]]
    open: Callable[[str], bytes]
    where: Callable[[str], str]

    def read(self, name: str) -> bytes:
        """The bytes of a file. Raises InputError."""
        try:
            return self.open(name)
        except (
            Exception
        ) as error:  # each way of packing has its own: zlib.error, LZMAError, RuntimeError for a password …
            raise InputError(
                f"{self.where(name)}: cannot be read ({error}); get it, or the archive that it is in, again."
            ) from error

    def folder(self, prefix: str) -> list[str]:
        """Names below `prefix`, sorted."""
        return sorted(name for name in self.stamps if name.startswith(prefix))


def folder_tree(root: Path, wanted: Iterable[str]) -> FileTree:
    """The files below the sub-folders `wanted` of `root`."""
    stamps = {}
    for sub in wanted:
        for path in visible_files(root / sub):
            stat = path.stat()
            stamps[path.relative_to(root).as_posix()] = (stat.st_size, stat.st_mtime)
    return FileTree(stamps, lambda name: (root / name).read_bytes(), lambda name: str(root / name))


def zip_tree(archives: list[Path]) -> FileTree:
    """The members of several zip files, as one tree. Nothing is unpacked to disk."""
    stamps, holder = {}, {}
    for path in archives:
        try:
            with zipfile.ZipFile(path) as archive:
                members = [info for info in archive.infolist() if not info.is_dir()]
                time = path.stat().st_mtime
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror or error}).") from error
        except Exception as error:  # zipfile raises many kinds: damage, names not UTF-8, odd versions
            raise InputError(f"{path}: not a complete zip archive ({error}); download it again.") from error
        for info in members:
            _check_inside(path, info.filename)
            stamps[info.filename] = (info.file_size, time)
            holder[info.filename] = path

    def read(name: str) -> bytes:
        # Opened for every read: a ZipFile shared by threads serialises them, and opening one is cheap next to a decode.
        with zipfile.ZipFile(holder[name]) as archive:
            return archive.read(name)

    return FileTree(stamps, read, lambda name: f"{holder[name]}!{name}")


def tar_tree(archive: Path) -> FileTree:
    """The members of an uncompressed tar file, read by offset. Nothing is unpacked to disk."""
    stamps, spans = {}, {}
    try:
        with tarfile.open(archive, "r:") as tar:
            for member in tar:
                _check_inside(archive, member.name)
                if member.isfile():
                    stamps[member.name] = (member.size, member.mtime)
                    spans[member.name] = (member.offset_data, member.size)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{archive}: cannot be read ({error.strerror or error}).") from error
    except Exception as error:  # besides TarError, what garbage in a header leads to: ValueError, OverflowError …
        raise InputError(f"{archive}: not a complete tar archive ({error}); download it again.") from error

    def read(name: str) -> bytes:
        offset, size = spans[name]
        with archive.open("rb") as file:
            file.seek(offset)
            return file.read(size)

    return FileTree(stamps, read, lambda name: f"{archive}!{name}")


def _check_inside(archive: Path, member: str) -> None:
    """Refuses an archive with a member that would land elsewhere, were it unpacked: it is not its owners'."""
    parts = PurePosixPath(member.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts:
        raise InputError(
            f"{archive}: its member {member!r} leads out of the archive; download it again, from its owners."
        )
