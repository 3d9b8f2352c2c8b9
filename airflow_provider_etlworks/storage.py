"""Files on this machine or in an object store: read in chunks, replaced as a whole."""

from __future__ import annotations

import os
import secrets
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import fsspec

from airflow_provider_etlworks import compat
from airflow_provider_etlworks.client.errors import EtlworksConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

# Seconds without a write after which a temporary file belongs to nobody: its process was killed.
_ABANDONED_AFTER = 3600.0
# Bytes of a file in an object store that are held at a time. Some stores hold 50 MB by default.
_BLOCK = 8 * 1024 * 1024


def stored_file(name: str, path: Any) -> StoredFile:
    """
    Return the file that an argument names.

    :param name: the argument, for the message.
    :param path: a local path, a ``file://`` URL, or a URL or ObjectStoragePath of an object store.
    :raises EtlworksConfigError: it does not name a file.
    """
    text = str(path) if isinstance(path, os.PathLike) or hasattr(path, "protocol") else path
    # What a template makes of a task that returned nothing.
    if not isinstance(text, str) or not text.strip() or text == "None":
        raise EtlworksConfigError(f"{name} is {text!r}; it must be a path or a URL, such as 's3://bucket/bundle.json'.")
    if not text.rpartition("/")[2]:
        raise EtlworksConfigError(f"{name} is {text!r}, a directory; it must name a file.")
    parts = urlsplit(text)
    if "://" not in text:
        return LocalFile(text)
    if parts.scheme == "file" and not parts.netloc:
        return LocalFile(unquote(parts.path))
    # A store that does not exist is noticed before anything is sent.
    _located(text)
    return RemoteFile(text)


@dataclass(frozen=True)
class StoredFile:
    """
    A file, local or in an object store.

    :ivar path: its path or URL.
    """

    path: str

    def sibling(self, ending: str) -> StoredFile:
        """Return the file whose path is this one's with ``ending`` added."""
        return type(self)(self.path + ending)

    def open_read(self) -> AbstractContextManager[IO[bytes]]:
        """
        Open it for reading. It can be read several times over, with ``seek``.

        :raises FileNotFoundError: it does not exist.
        """
        raise NotImplementedError

    def atomic_write(self) -> AbstractContextManager[IO[bytes]]:
        """
        Open a temporary file for writing, and move it into place at the end.

        If the block fails, the temporary file is removed, and an older file stays as it is.
        """
        raise NotImplementedError

    def read(self) -> bytes | None:
        """Return all of it; ``None`` if it does not exist. For small files."""
        try:
            with self.open_read() as source:
                return source.read()
        except FileNotFoundError:
            return None

    def write(self, content: bytes) -> None:
        """Replace it. For small files."""
        with self.atomic_write() as target:
            target.write(content)

    def _neighbour(self) -> str:
        """Return the path of a new temporary file next to this one."""
        directory, slash, name = self.path.rpartition("/")
        return f"{directory}{slash}.{name}.{secrets.token_hex(8)}.part"


class LocalFile(StoredFile):
    """A file on this machine. Only its owner can read it, from the first byte on."""

    _mode = 0o600
    _directory_mode = 0o700

    @contextmanager
    def open_read(self) -> Iterator[IO[bytes]]:
        """Open it for reading."""
        with Path(self.path).open("rb") as source:
            yield source

    @contextmanager
    def atomic_write(self) -> Iterator[IO[bytes]]:
        """Open a temporary file for writing, and move it into place at the end."""
        place, temporary = Path(self.path), Path(self._neighbour())
        place.parent.mkdir(mode=self._directory_mode, parents=True, exist_ok=True)
        self._remove_abandoned()
        try:
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, self._mode), "wb") as target:
                yield target
                target.flush()
                os.fsync(target.fileno())
            temporary.replace(place)
        finally:
            temporary.unlink(missing_ok=True)

    def _remove_abandoned(self) -> None:
        """Remove what a killed process left here: it is as sensitive as the file itself."""
        place = Path(self.path)
        for each in place.parent.iterdir():
            if each.name.startswith(f".{place.name}.") and each.name.endswith(".part"):
                with suppress(FileNotFoundError):  # another process may remove it first
                    if each.stat().st_mtime < time.time() - _ABANDONED_AFTER:
                        each.unlink()


class SharedLocalFile(LocalFile):
    """A file on this machine that other users may read, as the umask allows: Airflow's processes may be others."""

    _mode = 0o666
    _directory_mode = 0o777


class RemoteFile(StoredFile):
    """A file in an object store, reached as Airflow's ObjectStoragePath reaches it."""

    @contextmanager
    def open_read(self) -> Iterator[IO[bytes]]:
        """Open it for reading."""
        store, place = _located(self.path)
        # Not the path's own open(), which records every single read as lineage.
        with store.open(place, "rb", block_size=_BLOCK) as source:
            yield source

    @contextmanager
    def atomic_write(self) -> Iterator[IO[bytes]]:
        """Open a temporary file for writing, and move it into place at the end."""
        store, place = _located(self.path)
        temporary = _located(self._neighbour())[1]
        try:
            with store.open(temporary, "wb", block_size=_BLOCK) as target:
                yield target
            store.mv(temporary, place)
        except BaseException:
            with suppress(FileNotFoundError):
                store.rm_file(temporary)
            raise


def _located(url: str) -> tuple[Any, str]:
    """
    Return an object store, and what it calls the file that a URL names.

    :raises EtlworksConfigError: the store does not exist, or its package is not installed.
    """
    try:
        path = compat.ObjectStoragePath(url)
        try:
            return path.fs, path.path
        except ValueError:
            # Airflow does not know this scheme. fsspec may, without a connection.
            if "@" in urlsplit(url).netloc:
                raise
            return fsspec.filesystem(path.protocol), path.path
    except (ValueError, ImportError) as error:
        raise EtlworksConfigError(f"{url!r} is not in a store that Airflow can reach: {error}") from error
