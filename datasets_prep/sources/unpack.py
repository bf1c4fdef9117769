"""Streams of bytes as they are read: compressed in any way that their first bytes tell, in any encoding with a mark."""

import bz2
import codecs
import gzip
import io
import lzma
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa

from datasets_prep.sources.rows import UNREADABLE

HEAD = 2**16  # bytes that are looked at to tell what a stream is
LAYERS = 4
BUFFER = 2**18
PART = 2**13  # at a time, since what is read together with the end of a cut file is lost with it


@dataclass(frozen=True)
class Unpacked:
    """A stream, and its first bytes, which are still in it: all of them where they are fewer than `HEAD`.

    `as_is` where nothing had to be done to it.
    """

    head: bytes
    stream: BinaryIO
    as_is: bool


def unpacked(raw: BinaryIO) -> Unpacked:
    """Return the stream without compression and byte order mark, in UTF-8."""
    for layer in range(LAYERS + 1):
        head, stream = with_head(raw)
        opened = next((each for magic, each in _LAYERS if _begins(head, magic)), None)
        if opened is None or layer == LAYERS:
            break
        raw = opened(stream)
    return Unpacked(head, _with_line_feeds(head, stream), as_is=layer == 0)


def _begins(head: bytes, magic: bytes | re.Pattern[bytes]) -> bool:
    return head.startswith(magic) if isinstance(magic, bytes) else magic.match(head) is not None


def with_head(raw: BinaryIO, size: int = HEAD) -> tuple[bytes, BinaryIO]:
    """Return the first bytes and a stream that still contains them.

    An error on the way to them is kept until what stands before it was read.
    """
    head, error = bytearray(), None
    try:
        while len(head) < size and (part := _some(raw, size - len(head))):
            head += part
    except UNREADABLE as raised:
        error = raised
    return bytes(head), io.BufferedReader(_Rejoined(bytes(head), raw, error), BUFFER)


def _some(raw: Any, size: int) -> bytes:
    """Read at least a byte, unless at the end, without waiting for all."""
    size = min(size, PART)
    part: bytes = raw.read1(size) if hasattr(raw, "read1") else raw.read(size)
    return part


class _Rejoined(io.RawIOBase):
    """A stream of which the first bytes were read before."""

    def __init__(self, head: bytes, rest: BinaryIO, error: Exception | None) -> None:
        self.head, self.rest, self.error = head, rest, error

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self.head:
            part, self.head = self.head[: len(buffer)], self.head[len(buffer) :]
        elif self.error:
            raise self.error
        else:
            part = _some(self.rest, len(buffer))
        buffer[: len(part)] = part
        return len(part)


class _Converted(io.RawIOBase):
    """A stream whose parts are each converted."""

    def __init__(self, stream: BinaryIO, convert: Callable[[bytes], bytes]) -> None:
        self.stream, self.convert, self.left, self.ended = stream, convert, b"", False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.left and not self.ended:
            part = _some(self.stream, BUFFER)
            self.ended = not part
            self.left = self.convert(part)
        part, self.left = self.left[: len(buffer)], self.left[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)


def _recoded(encoding: str) -> Callable[[BinaryIO], BinaryIO]:
    """Convert UTF-16 or UTF-32 to UTF-8; invalid characters stay invalid."""

    def convert(stream: BinaryIO) -> BinaryIO:
        decoder = codecs.getincrementaldecoder(encoding)("surrogatepass" if "16" in encoding else "replace")

        def part(content: bytes) -> bytes:
            return decoder.decode(content, final=not content).encode("utf-8", "surrogatepass")

        return io.BufferedReader(_Converted(stream, part), BUFFER)

    return convert


def _after_mark(stream: BinaryIO) -> BinaryIO:
    stream.read(len(codecs.BOM_UTF8))
    return stream


def _with_line_feeds(head: bytes, stream: BinaryIO) -> BinaryIO:
    """Convert the carriage returns of old Macs to line feeds."""
    if b"\r" not in head or b"\n" in head or b"\0" in head:
        return stream
    return io.BufferedReader(_Converted(stream, lambda part: part.replace(b"\r", b"\n")), BUFFER)


def _arrow_codec(name: str) -> Callable[[BinaryIO], BinaryIO]:
    return lambda stream: io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(stream, "r"), name), BUFFER)


_LAYERS: tuple[tuple[bytes | re.Pattern[bytes], Callable[[Any], Any]], ...] = (
    (b"\x1f\x8b", gzip.open),
    (re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)"), bz2.open),
    (b"\xfd7zXZ\0", lzma.open),
    (b"\x28\xb5\x2f\xfd", _arrow_codec("zstd")),
    (b"\x04\x22\x4d\x18", _arrow_codec("lz4")),
    (codecs.BOM_UTF8, _after_mark),
    (codecs.BOM_UTF32_LE, _recoded("utf-32")),
    (codecs.BOM_UTF32_BE, _recoded("utf-32")),
    (codecs.BOM_UTF16_LE, _recoded("utf-16")),
    (codecs.BOM_UTF16_BE, _recoded("utf-16")),
)
"""The first bytes of each, all of them where a part might be a word; the longer of two that begin alike first."""


def decoded(content: bytes) -> str:
    """Text in UTF-8, or in UTF-16 or UTF-32 with a byte order mark; without the mark.

    Raises:
        UnicodeDecodeError: where it is none of these.
    """
    for mark in (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE):
        if content.startswith(mark):
            return content.decode("utf-32")
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16")
    return content.decode("utf-8-sig")
