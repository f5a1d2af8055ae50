"""What is in a tar file, by its headers alone: nothing is unpacked, and every damage is noticed."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

BLOCK = 512
RECORD = 20 * BLOCK
"""Bytes to which archives are filled up with zeros."""
LONGEST = 2**16
"""Bytes of an extended header, which holds long names and sizes."""
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
"""How compressed files begin."""

_FILES, _FOLDER = (b"0", b"\0", b"7"), b"5"
_OTHERS = {b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"6": "a pipe",
           b"S": "a sparse file"}


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file: its name, without ``./`` in front, and where its bytes are in the archive."""

    name: bytes
    offset: int
    size: int


def list_members(file: IO[bytes], total: int) -> Iterator[Member]:
    """The regular files in an archive, in its order; folders are passed over. The formats are POSIX's ustar and pax and
    GNU's, as ``tar`` and Python write them. The one who iterates may move the position of the file.

    :param total: bytes of the file
    :raises ValueError: says what is wrong: no archive, one cut short or damaged, links and devices, names that are
        absolute or lead out with ``..``
    """
    place, long = 0, {}
    while True:
        file.seek(place)
        header = file.read(BLOCK)
        if len(header) < BLOCK:
            raise ValueError("cut short: it has no end" if place else _tell_what(header))
        if not any(header):
            if any(file.read(RECORD)):
                raise ValueError("something follows its end, as in archives that were put one after the other")
            return
        try:
            name, size, kind = _read_header(header)
        except ValueError as error:
            raise ValueError(f"damaged at byte {place}: {error}" if place else _tell_what(header)) from error
        start = place + BLOCK
        if kind in (b"L", b"x"):
            if size > LONGEST or start + size > total:
                raise ValueError(f"an extended header of {size} bytes")
            content = file.read(size)
            long |= {"path": content.rstrip(b"\0")} if kind == b"L" else _read_records(content)
        elif kind not in (b"K", b"g"):  # a long link, whose member is refused, and what holds for the archive
            name, size, long = long.get("path", name), int(long.get("size", size)), {}
            if kind in _FILES and not name.endswith(b"/"):
                if start + size > total:
                    raise ValueError(f"cut short inside {_show(name)}")
                yield Member(_check_name(name), start, size)
            elif kind not in (*_FILES, _FOLDER):
                raise ValueError(f"{_OTHERS.get(kind, f'a member of type {kind!r}')}: {_show(name)}")
        place = start + -(-size // BLOCK) * BLOCK


def _read_header(header: bytes) -> tuple[bytes, int, bytes]:
    # The checksum counts itself as blanks.
    if _read_number(header[148:156]) != sum(header) - sum(header[148:156]) + 256:
        raise ValueError("no header with a right checksum")
    name, prefix = header[:100].split(b"\0", 1)[0], b""
    if header[257:263] == b"ustar\0":
        prefix = header[345:500].split(b"\0", 1)[0]
    return b"/".join(filter(None, (prefix, name))), _read_number(header[124:136]), header[156:157]


def _read_number(field: bytes) -> int:
    if field[0] == 0x80:  # GNU's numbers of more than eleven octal digits
        return int.from_bytes(field[1:], "big")
    digits = field.split(b"\0", 1)[0].strip()
    if digits and not digits.isdigit():
        raise ValueError(f"the number {digits!r}")
    return int(digits or b"0", 8)


def _read_records(content: bytes) -> dict[str, bytes]:
    """The records ``LENGTH KEY=VALUE`` of an extended header that matter here."""
    found, place = {}, 0
    while place < len(content):
        length, _, _ = content[place : place + 12].partition(b" ")
        if not length.isdigit() or int(length) <= len(length) + 1:
            raise ValueError("an extended header that cannot be read")
        key, _, value = content[place + len(length) + 1 : place + int(length) - 1].partition(b"=")
        if key.startswith(b"GNU.sparse"):
            raise ValueError("a sparse file")
        if key in (b"path", b"size"):
            found[key.decode()] = value
        place += int(length)
    if not found.get("size", b"0").isdigit():
        raise ValueError("an extended header that cannot be read")
    return found


def _check_name(name: bytes) -> bytes:
    parts = [part for part in name.split(b"/") if part not in (b"", b".")]
    if name.startswith(b"/") or b".." in parts or b"\0" in name or not parts:
        raise ValueError(f"a name that is absolute or leads out of the archive: {_show(name)}")
    return b"/".join(parts)


def _tell_what(start: bytes) -> str:
    if not start:
        return "empty"
    kind = next((kind for mark, kind in COMPRESSED.items() if start.startswith(mark)), None)
    return f"compressed ({kind}), where parts cannot be read by themselves" if kind else "no tar archive"


def _show(name: bytes) -> str:
    return name[:200].decode(errors="backslashreplace")
