"""MPEG audio (mp3) counted without decoding it: each frame says in four bytes how long it is.

A decoder believes the count of frames in a Xing header, or guesses one from the size of the file, and stops
there or where the file ends. So the frames are counted: a file that was cut has fewer than its header says,
several in one, or a variable bit rate without a header, have more than were decoded. Bounded: no more frames
are looked at than were decoded, and no more than JUNK bytes between them.
"""

from dataclasses import dataclass
from typing import BinaryIO

MAX_JUNK_BYTES = 1 << 16  # bytes that are neither frame nor tag; what lies behind them is not looked at
FRAME_TOLERANCE = 4  # frames: the encoder's delay and padding, which are not decoded, and a frame that is cut
MPEG_SEARCH_BYTES = 1024  # bytes searched at a time
ID3V1_BYTES = 128  # bytes of an ID3v1 tag
APE_MARK_BYTES = 32  # bytes of the head and of the foot of an APE tag

MPEG_SAMPLE_RATES = (44_100, 48_000, 32_000)  # Hz of MPEG 1; halved in 2, and again in 2.5
MPEG_BIT_RATES = {  # kbit/s by (MPEG 1, layer), from index 1; index 0 is a frame of a length that it does not tell
    (True, 1): tuple(range(32, 449, 32)),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


@dataclass(frozen=True, slots=True)
class MpegFrame:
    """What a frame's header says."""

    length: int  # bytes, header included
    samples: int  # per channel
    xing: int  # where a Xing header would begin


def read_bytes_at(file: BinaryIO, place: int, count: int) -> bytes:
    """Bytes of a file; fewer at its end."""
    file.seek(place)
    return file.read(count)


def id3_tag_length(head: bytes) -> int:
    """Bytes of the ID3v2 tag that begins with these ten; 0: none does."""
    if len(head) < 10 or head[:3] != b"ID3":
        return 0
    size = sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
    return 10 + size + 10 * bool(head[5] & 0x10)


def parse_mpeg_frame(head: bytes) -> MpegFrame | None:
    """The frame that begins with these four bytes; None: none does, or none that tells its length."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)  # 0: MPEG 2.5, 2: MPEG 2, 3: MPEG 1
    speed, rate, padding = head[2] >> 4, head[2] >> 2 & 3, head[2] >> 1 & 1
    if version == 1 or layer == 4 or speed in (0, 15) or rate == 3:
        return None
    first, mono = version == 3, head[3] >> 6 == 3
    samples = 384 if layer == 1 else 576 if layer == 3 and not first else 1152
    slot = 4 if layer == 1 else 1
    hertz = MPEG_SAMPLE_RATES[rate] // (1 if first else 2 if version == 2 else 4)
    slots = MPEG_BIT_RATES[first, layer][speed - 1] * 1000 * samples // (8 * slot * hertz) + padding
    return MpegFrame(slots * slot, samples, 4 + ((17 if mono else 32) if first else (9 if mono else 17)))


def find_mpeg_problem(file: BinaryIO, start: int, end: int, decoded: int) -> str | None:
    """What is wrong with the count of samples in ``file[start:end]``, of which so many were decoded."""
    end = _find_sound_end(file, start, end)
    place, junk, lost = start, MAX_JUNK_BYTES, True  # lost: nothing says that a frame begins here
    samples = few = 0
    while place < end and junk > 0 and samples <= decoded + few:
        frame = parse_mpeg_frame(read_bytes_at(file, place, 4))
        if frame and lost:  # two in a row are frames
            behind = place + frame.length
            frame = frame if behind >= end or parse_mpeg_frame(read_bytes_at(file, behind, 4)) else None
        if frame:
            few = FRAME_TOLERANCE * frame.samples
            announced = (
                0 if samples else _count_xing_frames(read_bytes_at(file, place + frame.xing, 12)) * frame.samples
            )
            if announced > decoded + few:
                return f"must have the {announced} samples that its header counts, else it was cut: got {decoded}"
            samples += 0 if announced else frame.samples
            place, lost = place + frame.length, False
            continue
        mark = read_bytes_at(file, place, APE_MARK_BYTES)
        lost, tag = True, id3_tag_length(mark[:10]) or _ape_tag_length(mark)
        step = tag or _distance_to_frame_start(read_bytes_at(file, place, MPEG_SEARCH_BYTES))
        place, junk = place + step, junk - (10 if tag else step)
    if samples > decoded + few:
        rule = "must be one recording, with a Xing header if its bit rate varies"
        return f"{rule}: got {decoded} of at least {samples} samples"
    if junk <= 0 and place < end:
        return f"must be frames one behind another: got {MAX_JUNK_BYTES} bytes or more that are none"
    if samples < decoded - few:
        return f"must be frames that tell their length: got {samples} of {decoded} samples in such"
    return None


def _find_sound_end(file: BinaryIO, start: int, end: int) -> int:
    """Where the sound ends: before an ID3v1 and an APE tag."""
    if end - ID3V1_BYTES >= start and read_bytes_at(file, end - ID3V1_BYTES, 3) == b"TAG":
        end -= ID3V1_BYTES
    foot = read_bytes_at(file, end - APE_MARK_BYTES, APE_MARK_BYTES) if end - APE_MARK_BYTES >= start else b""
    return max(start, end - _ape_tag_length(foot))


def _ape_tag_length(mark: bytes) -> int:
    """Bytes of the APE tag whose head, or foot, these 32 are; 0: neither."""
    if len(mark) < APE_MARK_BYTES or mark[:8] != b"APETAGEX":
        return 0
    size, flags = int.from_bytes(mark[12:16], "little"), mark[23]
    head, is_head = bool(flags & 0x80), bool(flags & 0x20)
    return size + APE_MARK_BYTES * (is_head or head)  # the size counts the foot


def _count_xing_frames(head: bytes) -> int:
    """Frames that a Xing header counts; 0: it is none, or does not say."""
    if len(head) < 12 or head[:4] not in (b"Xing", b"Info") or not head[7] & 1:
        return 0
    return int.from_bytes(head[8:12], "big")


def _distance_to_frame_start(bytes_: bytes) -> int:
    """How far it is to where a frame could begin."""
    if bytes_[:3] == b"TAG":
        return ID3V1_BYTES
    sync_place = bytes_.find(b"\xff", 1)
    return sync_place if sync_place > 0 else max(len(bytes_), 1)
