"""Fetching one public file: resumed where it broke off, verified before it gets its name.

In: a `RemoteFile` (address, size, checksum), of a data set or of weights. Out: the file, or an `InputError`; a partial
download stays beside it as `NAME.part`, and only whole, verified bytes are ever renamed to NAME.
"""

import dataclasses
import hashlib
import http.client
import os
import shutil
import urllib.error
import urllib.request
from pathlib import Path

from jaxseg.errors import InputError
from jaxseg.files import remove_own_file

CHUNK_BYTES = 1 << 20
ATTEMPTS = 5  # connections in a row that may bring nothing new
TIMEOUT_S = 60
AGENT = {"User-Agent": "jaxseg"}  # some servers refuse urllib's own name


@dataclasses.dataclass(frozen=True)
class RemoteFile:
    url: str
    size: int | None  # bytes; None: nobody recorded it, and the server is asked
    checksum: str
    algorithm: str = "sha256"  # of the checksum: what its source recorded

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[-1]


# Address: the challenge's own site. Size and checksum: as tensorflow-datasets records them (url_checksums/voc.txt).
VOC2012_TAR = RemoteFile(
    "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
    1_999_639_040,
    "e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb",
)
# Address: the challenge's own site. Checksum: as GluonCV records it (scripts/datasets/ade20k.py).
ADE20K_ZIP = RemoteFile(
    "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
    None,
    "219e1696abb36c8ba3a3afe7fb2f4b4606a897c7",
    algorithm="sha1",
)
ARCHIVES = {"voc2012": VOC2012_TAR, "ade20k": ADE20K_ZIP}


def with_size(remote: RemoteFile, target: Path) -> RemoteFile:
    """`remote` with the size that its server tells, where it has none. Raises InputError."""
    if remote.size is not None:
        return remote
    try:
        with urllib.request.urlopen(
            urllib.request.Request(remote.url, headers=AGENT, method="HEAD"), timeout=TIMEOUT_S
        ) as response:
            return dataclasses.replace(remote, size=int(response.headers["Content-Length"]))
    except (OSError, http.client.HTTPException, TypeError, ValueError) as error:
        raise InputError(
            f"{remote.url}: its server does not answer, or not with a size ({error}). Run the same command again, or fetch"
            f" the file by other means to {target}."
        ) from error


def download(remote: RemoteFile, target: Path, *, progress=lambda n: None) -> None:
    """Fetches `remote` to `target`, going on from `target.part` if there is one. Raises InputError."""
    remote = with_size(remote, target)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    for path in (target, part):
        if os.path.lexists(path) and not path.is_file():
            raise InputError(f"{path}: something else than the file that is fetched is there; move it away.")
    have = part.stat().st_size if part.exists() else 0
    if have > remote.size:
        raise InputError(
            f"{part}: {have:,} bytes, but {remote.name} has {remote.size:,}: a file of something else; move it away."
        )
    if (free := shutil.disk_usage(target.parent).free) < remote.size - have:
        raise InputError(
            f"{target.parent}: {remote.name} needs {remote.size - have:,} bytes, {free:,} are free; set config.data.dir."
        )
    progress(have)
    fruitless = 0
    reason = ""
    while have < remote.size:
        if fruitless == ATTEMPTS:
            raise InputError(
                f"{remote.url}: {have:,} of {remote.size:,} bytes came, then {ATTEMPTS} attempts in a row brought nothing"
                f" ({reason}). Run the same command again to go on, or fetch the file by other means to {target}."
            )
        try:
            _append(remote, part, have, progress)
            reason = "the connection closed early"
        except (OSError, http.client.HTTPException) as error:
            reason = str(error) or type(error).__name__
        now = part.stat().st_size if part.exists() else 0
        fruitless, have = (fruitless + 1 if now <= have else 0), now
    _verify(remote, part)
    part.rename(target)


def _append(remote: RemoteFile, part: Path, have: int, progress) -> None:
    """Adds to `part` what the server sends from byte `have` on; starts over where it cannot send ranges."""
    request = urllib.request.Request(remote.url, headers=AGENT | ({"Range": f"bytes={have}-"} if have else {}))
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
        resumed = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        if have and not resumed:
            progress(-have)
            have = 0
        with part.open("ab" if have else "wb") as file:
            while have < remote.size and (chunk := response.read(min(CHUNK_BYTES, remote.size - have))):
                file.write(chunk)
                have += len(chunk)
                progress(len(chunk))


def checksum_of(path: Path, algorithm: str = "sha256") -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def _verify(remote: RemoteFile, part: Path) -> None:
    digest = checksum_of(part, remote.algorithm)
    if digest != remote.checksum:
        remove_own_file(part)
        kind = remote.algorithm.replace("sha", "SHA-")
        raise InputError(
            f"{remote.url}: the {remote.size:,} bytes that came have {kind} {digest}, expected {remote.checksum};"
            " they were removed. Run the same command again."
        )
