"""Decompression and decoding of streams, detected from their first bytes."""

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

from datasets_prep.sources.raw_prompt_schema import UNREADABLE

HEAD = 2**16  # bytes that are read to detect a stream's format
MAX_LAYERS = 4
BUFFER = 2**18
PART = 2**13  # bytes per read: a read that meets a truncated end is lost as a whole


@dataclass(frozen=True)
class DecompressedStream:
    """A decompressed stream in UTF-8.

    Attributes:
        head: the first `HEAD` bytes, which are still in the stream.
        stream: the stream.
        is_unchanged: whether the file has neither compression nor byte order mark.
    """

    head: bytes
    stream: BinaryIO
    is_unchanged: bool


def decompress(raw: BinaryIO) -> DecompressedStream:
    """Return the stream without compression and byte order mark, in UTF-8."""
    for layer in range(MAX_LAYERS + 1):
        head, stream = peek(raw)
        open_layer = next((opener for magic, opener in _LAYERS if _starts_with(head, magic)), None)
        if open_layer is None or layer == MAX_LAYERS:
            break
        raw = open_layer(stream)
    return DecompressedStream(head, _convert_carriage_returns(head, stream), is_unchanged=layer == 0)


def _starts_with(head: bytes, magic: bytes | re.Pattern[bytes]) -> bool:
    return head.startswith(magic) if isinstance(magic, bytes) else magic.match(head) is not None


def peek(raw: BinaryIO, size: int = HEAD) -> tuple[bytes, BinaryIO]:
    """Return the first bytes and a stream that still contains them.

    An error is raised once the bytes before it have been read.
    """
    head, error = bytearray(), None
    try:
        while len(head) < size and (part := _read_some(raw, size - len(head))):
            head += part
    except UNREADABLE as raised:
        error = raised
    return bytes(head), io.BufferedReader(_PeekedStream(bytes(head), raw, error), BUFFER)


def _read_some(raw: Any, size: int) -> bytes:
    """Read 1 to `size` bytes without waiting for all of them; empty at the end."""
    size = min(size, PART)
    part: bytes = raw.read1(size) if hasattr(raw, "read1") else raw.read(size)
    return part


class _PeekedStream(io.RawIOBase):
    """A stream that returns bytes that were read ahead before the rest."""

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
            part = _read_some(self.rest, len(buffer))
        buffer[: len(part)] = part
        return len(part)


class _ConvertedStream(io.RawIOBase):
    """A stream whose parts are converted one by one."""

    def __init__(self, stream: BinaryIO, convert: Callable[[bytes], bytes]) -> None:
        self.stream, self.convert, self.converted, self.ended = stream, convert, b"", False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.converted and not self.ended:
            part = _read_some(self.stream, BUFFER)
            self.ended = not part
            self.converted = self.convert(part)
        part, self.converted = self.converted[: len(buffer)], self.converted[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)


def _decode_utf(encoding: str) -> Callable[[BinaryIO], BinaryIO]:
    """Convert UTF-16 or UTF-32 to UTF-8; invalid characters stay invalid."""

    def convert(stream: BinaryIO) -> BinaryIO:
        decoder = codecs.getincrementaldecoder(encoding)("surrogatepass" if "16" in encoding else "replace")

        def part(content: bytes) -> bytes:
            return decoder.decode(content, final=not content).encode("utf-8", "surrogatepass")

        return io.BufferedReader(_ConvertedStream(stream, part), BUFFER)

    return convert


def _skip_mark(stream: BinaryIO) -> BinaryIO:
    stream.read(len(codecs.BOM_UTF8))
    return stream


def _convert_carriage_returns(head: bytes, stream: BinaryIO) -> BinaryIO:
    """Convert the carriage returns of old Macs to line feeds."""
    if b"\r" not in head or b"\n" in head or b"\0" in head:
        return stream
    return io.BufferedReader(_ConvertedStream(stream, lambda part: part.replace(b"\r", b"\n")), BUFFER)


def _build_arrow_decompressor(name: str) -> Callable[[BinaryIO], BinaryIO]:
    return lambda stream: io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(stream, "r"), name), BUFFER)


_LAYERS: tuple[tuple[bytes | re.Pattern[bytes], Callable[[Any], Any]], ...] = (
    (b"\x1f\x8b", gzip.open),
    (re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)"), bz2.open),
    (b"\xfd7zXZ\0", lzma.open),
    (b"\x28\xb5\x2f\xfd", _build_arrow_decompressor("zstd")),
    (b"\x04\x22\x4d\x18", _build_arrow_decompressor("lz4")),
    (codecs.BOM_UTF8, _skip_mark),
    (codecs.BOM_UTF32_LE, _decode_utf("utf-32")),
    (codecs.BOM_UTF32_BE, _decode_utf("utf-32")),
    (codecs.BOM_UTF16_LE, _decode_utf("utf-16")),
    (codecs.BOM_UTF16_BE, _decode_utf("utf-16")),
)
"""The first bytes of each layer, and how to open it; a longer mark stands before its prefix."""


def decode_text(content: bytes) -> str:
    """Decode UTF-8, or UTF-16 or UTF-32 with a byte order mark, and drop the mark.

    Raises:
        UnicodeDecodeError: if the content is none of these.
    """
    for mark in (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE):
        if content.startswith(mark):
            return content.decode("utf-32")
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16")
    return content.decode("utf-8-sig")
