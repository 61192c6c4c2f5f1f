"""Files that grow while a run lasts, for a run directory where nothing can be appended."""

import tempfile
from pathlib import Path
from types import TracebackType

from flaxcls.places import in_bucket, os_errors


class Outbox:
    """A folder to write to, of which `send` copies what is new to `place`; to be closed.

    Where `place` is on this machine, it is the folder, and nothing is copied.
    """

    def __init__(self, place: Path) -> None:
        self._place = place
        self._temporary = tempfile.TemporaryDirectory(prefix="flaxcls-") if in_bucket(place) else None
        self._sent: dict[Path, tuple[int, int]] = {}
        self.folder = place if self._temporary is None else Path(self._temporary.name)

    def send(self) -> None:
        """Copies each file that has changed, whole. Raises OSError if one cannot be written."""
        if self._temporary is None:
            return
        for file in sorted(self.folder.rglob("*")):
            stat = file.stat()
            version = (stat.st_mtime_ns, stat.st_size)
            if file.is_file() and self._sent.get(file) != version:
                with os_errors():
                    (self._place / str(file.relative_to(self.folder))).write_bytes(file.read_bytes())
                self._sent[file] = version

    def close(self) -> None:
        """Deletes the folder, if it is not `place` itself."""
        if self._temporary is not None:
            self._temporary.cleanup()

    def __enter__(self) -> "Outbox":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
