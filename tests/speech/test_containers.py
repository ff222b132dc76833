"""A file that was cut, or holds more than its header says, is refused; what soundfile writes is not."""

import io
import re
import struct
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from speech.data.clips import ClipInspector
from speech.data.sources.keep import ClipStore
from speech.sound import audio, containers, mpeg, ogg

RATES = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
SUFFIX = {"WAV": ".wav", "WAVEX": ".wav", "RF64": ".wav", "FLAC": ".flac", "OGG": ".ogg", "MP3": ".mp3"}
KINDS = [(kind, coding) for kind in SUFFIX for coding in soundfile.available_subtypes(kind)]


def noise(frames: int, channels: int = 1) -> np.ndarray:
    """Loud, then quiet: no bit rate but a constant one stays."""
    wave = np.random.default_rng(frames).normal(0, 0.2, (frames, channels))
    wave[frames // 2 :] *= 1e-3
    return wave


def written(kind: str, coding: str, frames: int = 36_000, rate: int = 24_000, **options: object) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, noise(frames), rate, coding, format=kind, **options)
    return file.getvalue()


WAV, RF64 = written("WAV", "PCM_16"), written("RF64", "PCM_16")
VORBIS, OPUS = written("OGG", "VORBIS"), written("OGG", "OPUS")
MP3 = written("MP3", "MPEG_LAYER_III", bitrate_mode="CONSTANT", compression_level=0.5)
FLAC = written("FLAC", "PCM_16")
VARIABLE = written("MP3", "MPEG_LAYER_III", bitrate_mode="VARIABLE", compression_level=0.0)


def bare(mp3: bytes) -> bytes:
    """Without the frame of its Xing header."""
    frame = mpeg.parse_mpeg_frame(mp3)
    assert frame is not None and mp3[frame.xing :][:4] in (b"Xing", b"Info")
    return mp3[frame.length :]


def sized(size: int, riff: int = 0xFFFFFFFF) -> bytes:
    """The WAV with another size of its data."""
    at = WAV.index(b"data")
    return WAV[:4] + struct.pack("<I", riff) + WAV[8 : at + 4] + struct.pack("<I", size) + WAV[at + 8 :]


def twice(wav: bytes) -> bytes:
    """With a second chunk of data."""
    return wav + wav[wav.index(b"data") :]


def counted(flac: bytes, samples: int) -> bytes:
    """With another count in STREAMINFO."""
    return flac[:22] + struct.pack(">I", samples) + flac[26:]


def pages(content: bytes) -> list[bytes]:
    collected, place = [], 0
    while place < len(content):
        table = content[place + 27 :][: content[place + 26]]
        collected.append(content[place : place + 27 + len(table) + sum(table)])
        place += len(collected[-1])
    return collected


def sealed(page: bytes) -> bytes:
    """With the checksum that it should have."""
    return page[:22] + ogg._compute_ogg_crc(page[:22] + bytes(4) + page[26:]) + page[26:]


def mixed(item: bytes, other: bytes) -> bytes:
    """Two Ogg streams whose pages take turns."""
    left = [sealed(page[:14] + b"two!" + page[18:]) for page in pages(other)]
    turns = zip_longest(pages(item), left, fillvalue=b"")
    return b"".join(chain.from_iterable(turns))


def noted(opus: bytes, rate: int) -> bytes:
    """With another rate in the head of Opus."""
    first, *rest = pages(opus)
    at = first.index(b"OpusHead") + 12
    return sealed(first[:at] + struct.pack("<I", rate) + first[at + 4 :]) + b"".join(rest)


def id3(size: int) -> bytes:
    return b"ID3\x04\0\0" + bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0)) + b"\xff\xfb" * (size // 2)


def ape(size: int, foot: bool) -> bytes:
    """An APE tag of so many bytes that look like frames, behind its head or before its foot."""
    mark = b"APETAGEX" + struct.pack("<IIII", 2000, size + 32, 1, 0 if foot else 0xA000_0000) + bytes(8)
    return b"\xff\xfb" * (size // 2) + mark if foot else mark + b"\xff\xfb" * (size // 2 + 16)


def read(folder: Path, suffix: str, content: bytes) -> audio.Wave:
    path = folder / f"a{suffix}"
    path.write_bytes(content)
    return audio.read(path, audio.read_audio_header(path).sample_rate, 60.0)


@pytest.mark.parametrize(("kind", "coding"), KINDS)
def test_what_soundfile_writes_is_read(tmp_path: Path, kind: str, coding: str) -> None:
    path, known = tmp_path / f"a{SUFFIX[kind]}", 0
    for rate in RATES:
        for channels in (1, 2):
            for seconds in (0.05, 0.333, 1.7):
                try:
                    soundfile.write(path, noise(round(seconds * rate), channels), rate, coding, format=kind)
                except soundfile.LibsndfileError:  # not at this rate, or not in stereo, or not at all
                    continue
                assert len(audio.read(path, rate, 10.0)) >= round(seconds * rate)
                known += 1
    assert known or coding in ("MPEG_LAYER_I", "MPEG_LAYER_II", "MPEG_LAYER_III", "G721_32")


@pytest.mark.parametrize("mode", ["CONSTANT", "AVERAGE", "VARIABLE"])
@pytest.mark.parametrize("level", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100])
def test_mp3_of_every_bit_rate_is_read(tmp_path: Path, mode: str, level: float, rate: int) -> None:
    options = {"bitrate_mode": mode, "compression_level": level}
    content = written("MP3", "MPEG_LAYER_III", 3 * rate, rate, **options)
    assert len(read(tmp_path, ".mp3", content)) >= 3 * rate - 1


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        (".wav", sized(0xFFFFFFFF)),  # ffmpeg's to a pipe
        (".wav", sized(0x7FFFF000)),  # sox's
        (".wav", sized(0)),  # Python's wave and soundfile before they close
        (".wav", sized(2_000_000_000)),  # some servers of voices
        (".wav", sized(0x7FFFFFFF - 36)),
        (".wav", sized(400_000_000)),
        (".wav", RF64.replace(struct.pack("<Q", 72_000), bytes(8))),
        (".wav", RF64.replace(struct.pack("<Q", 72_000), b"\xff" * 8)),
        (".flac", FLAC),
        (".flac", id3(40_000) + FLAC + b"TAG" + bytes(125)),
        (".wav", sized(len(WAV) - 44, riff=0)),
        (".wav", WAV + b"LIST" + struct.pack("<I", 4) + b"INFO"),
        (".wav", WAV + b"TAG" + b"\xee" * 125),
        (".mp3", bare(MP3)),
        (".mp3", id3(40_000) + MP3),
        (".mp3", id3(40_000) + id3(10) + bare(MP3)),
        (".mp3", MP3 + b"APETAGEX" + b"\xff\xfb" * 300 + b"TAG" + bytes(125)),
        (".mp3", bytes(700) + MP3),
        (".mp3", MP3 + ape(100_000, foot=False)),
        (".mp3", MP3 + ape(100_000, foot=True)),
        (".mp3", MP3 + ape(100_000, foot=True) + b"TAG" + bytes(125)),
    ],
    ids=range(21),
)
def test_what_others_write_is_read(tmp_path: Path, suffix: str, content: bytes) -> None:
    assert len(read(tmp_path, suffix, content)) >= 36_000


def small(kind: str, coding: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.zeros(500), 8_000, coding, format=kind)
    return file.getvalue()


QUIET, SHORT = small("FLAC", "PCM_16"), small("OGG", "VORBIS")
UNTOLD = "audio must say how long it is: it was cut, or written to a pipe"  # libsndfile before 1.2.2
REFUSED: list[tuple[str, bytes, str]] = [
    (
        ".wav",
        WAV[: len(WAV) // 2],
        r"audio must end within the file, else it was cut: got \d+ of 72000 bytes",
    ),
    (".wav", sized(72_002), "audio must end within the file, else it was cut: got 72000 of 72002 bytes"),
    (
        ".wav",
        RF64[: len(RF64) // 2],
        r"audio must end within the file, else it was cut: got \d+ of 72000 bytes",
    ),
    (".wav", WAV + WAV, "cannot be read as audio: .*No 'RIFF' chunk marker"),  # libsndfile's own rule
    (".wav", sized(8_000), "audio must have chunks behind its data: got something else"),
    (".wav", sized(71_000), "audio must have chunks behind its data: got something else"),
    (".wav", twice(WAV), "cannot be read as audio: .*one chunk of data"),
    (".flac", FLAC + FLAC, "audio must be one recording: something else follows it in the file"),
    (".flac", FLAC + QUIET, "audio must be one recording: something else follows it in the file"),
    (".flac", counted(FLAC, 35_999), "audio must have the 35999 samples that its header counts: got 36000"),
    (".flac", counted(FLAC, 1), "audio must have the 1 samples that its header counts: got 4096 or more"),
    (".ogg", mixed(VORBIS, SHORT), "audio must be one stream: another is mixed with it in the file"),
    (".opus", mixed(OPUS, VORBIS), "audio must be one stream: another is mixed with it in the file"),
    (
        ".ogg",
        VORBIS[:-100],
        f"({UNTOLD}|audio must end with a whole page, else it was cut: got a part of one)",
    ),
    (".ogg", VORBIS + VORBIS, "audio must be one stream: another follows it in the file"),
    (".opus", OPUS + OPUS, "audio must be one stream: another follows it in the file"),
    (
        ".ogg",
        VORBIS + bytes(5_000),
        rf"({UNTOLD}|audio must be pages without a gap: got something else at byte \d+)",
    ),
    (
        ".mp3",
        MP3[: len(MP3) // 3],
        r"audio must have the \d+ samples that its header counts, else it was cut: got",
    ),
    (
        ".mp3",
        MP3 * 3,
        "audio must be one recording, with a Xing header if its bit rate varies: got 36000 of at least ",
    ),
    (".mp3", id3(20) + MP3 + b"TAG" + bytes(125) + id3(20) + MP3, "audio must be one recording, with a"),
    (".mp3", MP3 + bytes(70_000) + MP3, "audio must be frames one behind another: got 65536 bytes or more"),
    (".mp3", bare(VARIABLE), "audio must be one recording, with a Xing header if its bit rate varies"),
]


@pytest.mark.parametrize(("suffix", "content", "rule"), REFUSED, ids=range(len(REFUSED)))
def test_what_would_be_read_short_is_refused(tmp_path: Path, suffix: str, content: bytes, rule: str) -> None:
    with pytest.raises(ValueError, match=rf"^{tmp_path}/a\{suffix}: {rule}") as caught:
        read(tmp_path, suffix, content)
    assert "\n" not in str(caught.value)
    checked = ClipInspector(tmp_path, 60.0, deep=True).find_problems([("audios[0]", f"a{suffix}")])
    assert list(checked) == [("audios[0]", str(caught.value))]
    (tmp_path / "to").mkdir()
    with pytest.raises(ValueError, match=f"^{rule}"):
        ClipStore(tmp_path / "to", tmp_path, 60.0, ClipInspector(tmp_path, 60.0, True)).store_clip(f"a{suffix}", None)
    assert not [path for path in (tmp_path / "to").rglob("*") if path.is_file()]


@pytest.mark.parametrize("rate", [0, 8_000, 16_000, 44_100, 48_000, 0xFFFFFFFF])
def test_opus_is_read_as_it_is_whatever_its_head_notes(tmp_path: Path, rate: int) -> None:
    wave = read(tmp_path, ".opus", noted(OPUS, rate))
    assert np.array_equal(wave, read(tmp_path, ".opus", noted(OPUS, 48_000))) and len(wave) == 72_000
    assert audio.read_audio_header(tmp_path / "a.opus").sample_rate == 48_000


@given(frames=st.integers(1, 20_000), level=st.sampled_from([0.0, 0.5, 1.0]), rate=st.sampled_from(RATES))
def test_flac_is_counted_as_it_is_decoded(frames: int, level: float, rate: int) -> None:
    content = written("FLAC", "PCM_16", frames, rate, compression_level=level)
    assert containers.find_container_problem(io.BytesIO(content), len(content), frames) is None
    if frames > 1:
        short = counted(content, frames - 1)
        assert "samples that its header counts" in str(
            containers.find_container_problem(io.BytesIO(short), len(short), 1)
        )


def test_a_wav_of_no_sound_is_empty_whatever_chunks_follow(tmp_path: Path) -> None:
    empty = written("WAV", "PCM_16", 0) + b"LIST" + struct.pack("<I", 5_000) + b"INFO" + bytes(4_996)
    with pytest.raises(ValueError, match="must not be empty: got 0 frames"):
        read(tmp_path, ".wav", empty)


def ending(content: bytes, position: int) -> bytes:
    """With another count of samples at its end."""
    *rest, last = pages(content)
    return b"".join([*rest, sealed(last[:6] + struct.pack("<q", position) + last[14:])])


def damaged(content: bytes) -> bytes:
    """With one byte of a page in its middle as another."""
    before, page, behind = pages(content)[:5], pages(content)[5], pages(content)[6:]
    return b"".join([*before, page[:300] + bytes([page[300] ^ 1]) + page[301:], *behind])


LONG, TALK = written("OGG", "VORBIS", 240_000), written("OGG", "OPUS", 240_000)
BRIEF = written("OGG", "OPUS", 12_000)
DAMAGE: list[tuple[bytes, str]] = [
    (ending(VORBIS, 100), "must count its samples upwards: got 100 behind "),
    (ending(VORBIS, -1), "must count its samples up to its end: its last page does not"),
    (ending(TALK, 431_100), "must count the samples of its packets: got "),
    (ending(BRIEF, 1_000), "must count the samples of its packets: got "),
    (
        b"".join(pages(VORBIS)[:-1]),
        "must end with the page that ends its stream, else it was cut: it has none",
    ),
    (b"".join(pages(LONG)[:8] + pages(LONG)[9:]), "must have all its pages: got number 9 behind 7"),
    (damaged(LONG), "must have whole pages: got a damaged one, number 5"),
    (damaged(TALK), "must have whole pages: got a damaged one, number 5"),
]


@pytest.mark.parametrize(("content", "rule"), DAMAGE, ids=range(len(DAMAGE)))
def test_what_a_decoder_of_ogg_passes_over_is_refused(tmp_path: Path, content: bytes, rule: str) -> None:
    with pytest.raises(ValueError, match=f"a.ogg: audio {rule}"):
        read(tmp_path, ".ogg", content)


@pytest.mark.parametrize(("bits", "frame"), [(16, 4), (8, 2), (24, 2), (16, 0)])
def test_a_wav_whose_format_contradicts_itself_is_refused(tmp_path: Path, bits: int, frame: int) -> None:
    with pytest.raises(ValueError, match=f"agrees with itself: got {frame} bytes for 1 x {bits} bits"):
        read(tmp_path, ".wav", WAV[:32] + struct.pack("<HH", frame, bits) + WAV[36:])


def test_a_little_behind_the_last_page_is_no_gap() -> None:
    assert containers.find_container_problem(io.BytesIO(VORBIS + bytes(512)), len(VORBIS) + 512, 36_000) is None


def test_another_container_is_refused_whatever_its_suffix(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.wav: audio must be WAV, FLAC, Ogg or MP3: got AIFF"):
        read(tmp_path, ".wav", written("AIFF", "PCM_16"))


@given(st.data())
def test_what_is_left_of_a_file_is_whole_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    suffix, content = data.draw(
        st.sampled_from([(".wav", WAV), (".flac", FLAC), (".ogg", VORBIS), (".opus", OPUS), (".mp3", MP3)])
    )
    cut = content[: data.draw(st.integers(0, len(content) - 1))]
    try:
        wave = read(tmp_path_factory.mktemp("cut"), suffix, cut)
    except ValueError:
        return
    assert len(wave) >= 36_000 - mpeg.FRAME_TOLERANCE * 576


class Counted(io.BytesIO):
    """A file that knows how often it was read."""

    reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        return super().read(size)


BEGINNINGS = (
    WAV[:40],
    RF64[:80],
    VORBIS[:60],
    VORBIS[:28],
    MP3[:200],
    b"ID3\x04\0\0\0\0\0\2",
    b"RIFX" + WAV[4:40],
    FLAC[:200],
    OPUS[:60],
)


@given(
    st.sampled_from([b"", *BEGINNINGS]),
    st.lists(st.one_of(st.binary(max_size=40), st.sampled_from(BEGINNINGS)), max_size=20),
    st.integers(0, 100_000),
)
def test_any_bytes_get_an_answer(beginning: bytes, rest: list[bytes], decoded: int) -> None:
    content = b"".join([beginning, *rest])
    container_problem = containers.find_container_problem(Counted(content), len(content), decoded)
    assert container_problem is None or (container_problem.startswith("must ") and "\n" not in container_problem)


@given(st.sampled_from([WAV, RF64, VORBIS, OPUS, FLAC, MP3, VARIABLE]), st.data())
def test_damaged_files_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, data: st.DataObject
) -> None:
    damaged = bytearray(content)
    for place in data.draw(st.lists(st.integers(0, min(len(content) - 1, 3_000)), max_size=8)):
        damaged[place] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "a.wav"
    path.write_bytes(damaged)
    try:
        audio.read(path, 24_000, 60.0)
    except ValueError as error:
        assert str(error).startswith(f"{path}: ")


SMALLEST = bytes([0xFF, 0xE3, 0x10, 0xC0])  # MPEG 2.5 at 11025 Hz and 8 kbit/s


@pytest.mark.parametrize(
    ("content", "most"),
    [
        (b"RIFF\0\0\0\0WAVE" + b"LIST\0\0\0\0" * 100_000, 1_100),
        ((b"OggS\0\0" + bytes(21)) * 100_000, 2_100),
        (b"ID3\x04\0\0\0\0\0\0" * 100_000, 30_000),
        (bytes(2_000_000), 300),
        (b"\xff" * 500_000, 4 * mpeg.MAX_JUNK_BYTES),
        ((SMALLEST + bytes(48)) * 100_000, 200),
        ((SMALLEST + bytes(49)) * 100_000, 10_000),
        (FLAC[:42] + b"\xff\xf8" * 100_000, 30),
        (b"fLaC" + bytes(38) + bytes(4) * 100_000, 1_100),
    ],
    ids=range(9),
)
def test_a_hostile_file_is_not_looked_at_for_longer_than_its_sound_is_worth(content: bytes, most: int) -> None:
    file = Counted(content)
    containers.find_container_problem(file, len(content), 16_000)
    assert file.reads <= most


NOTES = b"LIST" + struct.pack("<I", 4) + b"INFO"


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFF000, 0])
@pytest.mark.parametrize("behind", [NOTES, NOTES + b"id3 " + struct.pack("<I", 3) + b"ID3\0", b""])
def test_chunks_behind_a_sound_of_unknown_size_are_no_sound(tmp_path: Path, size: int, behind: bytes) -> None:
    assert len(read(tmp_path, ".wav", sized(size) + behind)) == len(read(tmp_path, ".wav", sized(size)))


def test_zeros_behind_a_sound_are_something_else_and_a_broken_format_is_told_first(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got something else"):
        read(tmp_path, ".wav", written("WAV", "PCM_16") + bytes(20_000))
    streamed = bytearray(sized(0xFFFFFFFF))
    at = streamed.index(b"fmt ") + 20
    streamed[at : at + 2] = struct.pack("<H", 3)
    assert "agrees with itself" in str(containers.find_container_problem(io.BytesIO(streamed), len(streamed), 100))


@pytest.mark.parametrize("behind", [bytes(1000), b"ID3\x03" + bytes(6) + b"x" * 300, b"TAG" + b"x" * 125, b"\x07" * 9])
def test_padding_and_tags_behind_a_sound_are_no_sound(tmp_path: Path, behind: bytes) -> None:
    assert len(read(tmp_path, ".wav", WAV + behind)) == len(read(tmp_path, ".wav", WAV))


@pytest.mark.parametrize(
    ("suffix", "content", "kind"),
    [
        (".wav", b"\0\0\0\x1cftypM4A " + bytes(900), "it is MPEG-4 (m4a, mp4): ffmpeg"),
        (".ogg", b"\x1a\x45\xdf\xa3" + bytes(900), "it is WebM"),
        (".mp3", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (".mp3", b"\x11" * 100_000, "nothing in it is a sound that can be decoded"),
    ],
)
def test_a_file_of_another_kind_is_called_by_its_name(tmp_path: Path, suffix: str, content: bytes, kind: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"cannot be read as audio: {kind}" if "git" not in kind else kind)):
        read(tmp_path, suffix, content)
