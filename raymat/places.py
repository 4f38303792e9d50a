"""Where data lies: a folder of this machine, or a prefix of an object store (``s3://bucket/prefix``).

Credentials come from the environment alone (AWS_ACCESS_KEY_ID and its kin, a profile, an instance's role), so that no
table, log, run or dataset can hold them; so does the endpoint (AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL).
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import posixpath
import re
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.fs as pafs

from raymat.nodule import InputError
from raymat.words import utf8

# A request that moves nothing for so long is given up; RAYMAT_STORE_TIMEOUT says otherwise.
TIMEOUT_S = 20.0
CONNECT_TIMEOUT_S = 10.0
# pyarrow's own default, which is also what a file system that was sent to another process falls back to.
ATTEMPTS = 3
TRANSFERS = 8  # objects fetched at once for one nodule
HEADER_BYTES = 16 << 10  # of one ranged read: more than the header of most DICOM images
SECOND_NS = 10**9


class Unreachable(InputError):
    """A store does not answer, or not to us: no nodule's fault, so that it stops the build instead of failing one."""


class NotWritten(InputError):
    """A file could not be written: no permission, a full disk; what was to be written is not there."""


def is_uri(path: str | Path) -> bool:
    """Whether the text names a place by a URI rather than on this machine's disks."""
    return "://" in str(path)


def open_filesystem(path: str | Path) -> tuple[pafs.FileSystem, str]:
    """The pyarrow filesystem of a local path or URI (``s3://bucket/prefix``) and the path within it.

    Raises
    ------
    InputError
        The URI's scheme is unknown, it carries credentials, or its service cannot be set up.
    """
    text = str(path)
    if utf8(text) != text:
        raise InputError(f"{utf8(text)}: the path is not valid UTF-8, which datasets need; name another folder")
    if not is_uri(text):
        return pafs.LocalFileSystem(), str(Path(text).expanduser().absolute())
    refuse_credentials(text)
    try:
        if text.startswith("s3://"):
            return _open_s3(text)
        return pafs.FileSystem.from_uri(text)
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{text}: not a place that can be opened ({_brief(error)})") from error


def refuse_credentials(uri: str) -> None:
    """Raise InputError where a URI carries a user, password or query; its text is not repeated."""
    parts = urlsplit(uri)
    if "@" in parts.netloc and (parts.scheme == "s3" or ":" in parts.netloc.rpartition("@")[0]):
        raise InputError(
            f"a {parts.scheme}:// URI carries credentials, which logs and process lists would show: leave them out and "
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment"
        )
    if parts.query or parts.fragment:
        raise InputError(
            f"{parts.scheme}://{parts.netloc}{parts.path}: a URI ends with its path here; what follows ? or # belongs "
            "into the environment (AWS_ENDPOINT_URL, AWS_REGION)"
        )


def _open_s3(uri: str) -> tuple[pafs.FileSystem, str]:
    parts = urlsplit(uri)
    if not parts.netloc:
        raise InputError(f"{uri}: names no bucket; write s3://bucket/prefix")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or ""
    timeout = os.environ.get("RAYMAT_STORE_TIMEOUT") or TIMEOUT_S
    try:
        seconds = float(timeout)
    except ValueError:
        raise InputError(f"RAYMAT_STORE_TIMEOUT must be a number of seconds, not {timeout!r}") from None
    if not region:
        region = "us-east-1" if endpoint else pafs.resolve_s3_region(parts.netloc)
    return _s3(endpoint, region, seconds), (parts.netloc + parts.path).rstrip("/")


@functools.cache
def _s3(endpoint: str, region: str, timeout: float) -> pafs.S3FileSystem:
    parts = urlsplit(endpoint if "://" in endpoint else f"https://{endpoint}")
    if "@" in parts.netloc:
        raise InputError(
            "AWS_ENDPOINT_URL carries credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY instead"
        )
    return pafs.S3FileSystem(
        region=region,
        endpoint_override=parts.netloc or None,
        scheme=parts.scheme,
        # Left to curl, a server that accepts and says nothing would hold a build for ever.
        request_timeout=timeout,
        connect_timeout=min(timeout, CONNECT_TIMEOUT_S),
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        # An object of a few MB is then one put, and not the three requests of an upload in parts.
        allow_delayed_open=True,
    )


def without_credentials(uri: str) -> str:
    """The URI with any user and password left out."""
    return re.sub(r"//[^/@]*@", "//", uri)


def in_submitted_job() -> bool:
    """Whether this process was started by ``ray job submit``: its working folder is deleted when it ends."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def store_error(where: str, error: OSError) -> InputError | None:
    """The error to raise where an object store failed at ``where``; None where the error is not the store's."""
    text = str(error)
    if "AWS Error" not in text:
        return None
    if "ACCESS_DENIED" in text:
        return InputError(f"{where}: access denied; see that the credentials in the environment may read and write it")
    return Unreachable(f"{where}: the store does not answer as it should ({_brief(error)})")


def _brief(error: BaseException) -> str:
    """The last and most specific part of an error's first line."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    start = line.find("AWS Error")
    return line[start:] if start > 0 else line


@contextlib.contextmanager
def _reaching(where: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"{where}: no such file") from error
    except OSError as error:
        raise store_error(where, error) or InputError(f"{where}: cannot be read ({_brief(error)})") from error


@dataclass(frozen=True)
class State:
    """What differs between versions of a file: bytes, and time of change in ns (whole seconds in a store)."""

    size: int
    mtime_ns: int


@dataclass(frozen=True)
class ObjectFolder:
    """A prefix of an object store, as input: listed, looked at, read in ranges, fetched to where files are read.

    Attributes
    ----------
    uri : ``s3://bucket/prefix``; names are relative to it, "/" between folders
    """

    uri: str

    @property
    def _filesystem(self) -> pafs.FileSystem:
        return open_filesystem(self.uri)[0]

    def _path(self, name: str) -> str:
        return f"{open_filesystem(self.uri)[1]}/{name}"

    def where(self, name: str) -> str:
        """The URI of a name, for messages."""
        return f"{self.uri}/{name}"

    def name_of(self, cell: str) -> str:
        """The name that a relative path has here.

        Raises
        ------
        InputError
            It leads out of the folder.
        """
        if "\0" in cell:
            raise InputError(f"the path {cell!r} holds a zero byte: mend the table")
        name = posixpath.normpath(posixpath.join("/", "here", cell))
        if not name.startswith("/here/"):
            raise InputError(f"the path {cell!r} leads out of {self.uri}: move the file or the table")
        return name.removeprefix("/here/")

    def states(self, names: Sequence[str]) -> dict[str, State | None]:
        """Size and time of change of each name, asked for side by side; None where there is no such object."""
        with _reaching(self.uri), ThreadPoolExecutor(TRANSFERS) as pool:
            # Given a list, pyarrow asks for one after the other.
            found = list(pool.map(self._filesystem.get_file_info, map(self._path, names)))
        return {name: _state(info) for name, info in zip(names, found, strict=True)}

    def walk(self) -> Iterator[tuple[str, dict[str, State]]]:
        """Every folder below with its files' names and states, in a fixed order."""
        with _reaching(self.uri):
            root = self._path("")
            found = self._filesystem.get_file_info(pafs.FileSelector(root, recursive=True, allow_not_found=True))
        states = {info.path[len(root) :]: _state(info) for info in found}
        files = {name: state for name, state in states.items() if state is not None}
        ordered = sorted(files, key=lambda name: (posixpath.dirname(name).split("/"), name))
        for folder, names in groupby(ordered, key=posixpath.dirname):
            yield folder, {name: files[name] for name in names}

    def open(self, name: str) -> _Ranged:
        """The object as a raw file that reads in ranges, a request a read."""
        with _reaching(self.where(name)):
            return _Ranged(self.where(name), self._filesystem.open_input_file(self._path(name)))

    def read(self, name: str) -> bytes:
        """The bytes of an object."""
        with (
            _reaching(self.where(name)),
            self._filesystem.open_input_stream(self._path(name), compression=None) as stream,
        ):
            return stream.read()

    def write(self, name: str, data: bytes) -> None:
        """Write an object, there whole or not at all."""
        try:
            with self._filesystem.open_output_stream(self._path(name), compression=None) as stream:
                stream.write(data)
        except OSError as error:
            where = self.where(name)
            raise store_error(where, error) or NotWritten(f"{where}: cannot be written ({_brief(error)})") from error

    @contextlib.contextmanager
    def at_hand(self, names: Sequence[str]) -> Iterator[str]:
        """A folder of this machine in which the named objects lie while the context lasts, with their times of change.

        Objects that do not exist are left out: what reads them says so. Errors raised inside name the store, not the
        folder.
        """
        for name in names:
            if posixpath.normpath(name) != name or name.startswith(("../", "/")):
                raise InputError(f"{self.where(name)}: a name that leads out of its folder; rename the object")
        with tempfile.TemporaryDirectory(prefix="raymat-") as scratch, ThreadPoolExecutor(TRANSFERS) as pool:
            # Beside the bytes: before them it would take half as long again, and a worker begins each batch with it.
            states = pool.submit(self.states, names)
            targets = dict(zip(names, pool.map(functools.partial(self._fetch, scratch), names), strict=True))
            for name, state in states.result().items():
                if state and (target := targets[name]):
                    os.utime(target, ns=(state.mtime_ns, state.mtime_ns))
            try:
                yield scratch
            except Unreachable:
                raise
            except InputError as error:
                raise InputError(str(error).replace(scratch, self.uri)) from error

    def _fetch(self, scratch: str, name: str) -> Path | None:
        """Where the object's bytes now lie below ``scratch``; None where there is no such object."""
        target = Path(scratch, name)
        with (
            _reaching(self.where(name)),
            contextlib.suppress(FileNotFoundError),
            self._filesystem.open_input_stream(self._path(name), compression=None) as stream,
        ):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(stream.read())
            return target
        return None


def _state(info: pafs.FileInfo) -> State | None:
    if info.type != pafs.FileType.File:
        return None
    # A listing gives fractions of a second where a look at one object does not.
    return State(info.size, (info.mtime_ns or 0) // SECOND_NS * SECOND_NS)


class _Ranged(io.RawIOBase):
    """A pyarrow file as Python's raw file."""

    def __init__(self, where: str, file: pa.NativeFile) -> None:
        # pydicom asks every file for its name.
        self.name, self.file, self.size, self.position = where, file, file.size(), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.size}[whence]
        return self.position

    def readinto(self, buffer) -> int:
        wanted = min(len(buffer), max(self.size - self.position, 0))
        if not wanted:
            return 0
        with _reaching(self.name):
            data = self.file.read_at(wanted, self.position)
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)
