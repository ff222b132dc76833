"""What the codec costs in intelligibility: word error rates of held-out replies, raw and through the codec.

    python -m bench.codec_wer [--rows N] [--open-rows N]

The same test sentences are spoken in all three styles. "in-domain" is pocketsphinx with the n-gram from
training replies, "open" with the language model that it ships, "whisper" the installed tiny.en, which judges
all data but the embedded; the two are slow and therefore hear the first replies only. Words are compared as
judges do (speech/answers/words.py). Required in-domain: <= 2 % raw, <= 4 % after encode + decode; exit status 1: one
of them is not.
"""

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import jiwer

from examples.tiny_world.build import BASE, DATA
from examples.tiny_world.pretrain import read_rows
from examples.tiny_world.speak import REPLY_MANNERS, read_clips
from judge.recognisers.installed import locate_tiny_en
from judge.recognisers.pocketsphinx import PocketsphinxRecogniser
from judge.recognisers.remembered import SpeechRecogniser
from judge.recognisers.whisper import FasterWhisperRecogniser
from speech.answers.words import split_words
from speech.codecs.mel import MelCodec
from speech.sound.mel import FloatArray

BOUNDS = {"raw": 0.02, "codec": 0.04}  # highest word error rate in-domain


def timed(work: Callable[[Any], Any], items: list[Any]) -> tuple[list[Any], float]:
    """Results and seconds."""
    started = time.perf_counter()
    return [work(item) for item in items], time.perf_counter() - started


def spoken(texts: list[str], style: str | None) -> list[FloatArray]:
    """The texts in one style, from the word bank."""
    folder = REPLY_MANNERS[style].name
    return [read_clips(DATA, [f"bank/{folder}/{word}.flac" for word in text.split()]) for text in texts]


def error_rate(recogniser: SpeechRecogniser, texts: list[str], waves: list[FloatArray]) -> tuple[float, float]:
    """Word error rate over all texts, and the recogniser's real-time factor."""
    heard, seconds = timed(lambda wave: recogniser.transcribe(wave, 16_000), waves)
    said, got = ([" ".join(split_words(text)) for text in side] for side in (texts, heard))
    return float(jiwer.wer(said, got)), seconds / (sum(map(len, waves)) / 16_000)


def in_domain() -> PocketsphinxRecogniser:
    return PocketsphinxRecogniser(DATA / "asr.arpa", DATA / "asr.dict")


def installed() -> SpeechRecogniser:
    return FasterWhisperRecogniser(locate_tiny_en(), "en")


def main() -> int:
    """0 when every bound was held."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, help="default: the whole test set")
    parser.add_argument("--open-rows", type=int, default=30, help="of these, for open and whisper")
    options = parser.parse_args()
    texts = [row["sft_target_text"] for row in read_rows("test")][: options.rows]
    codec = MelCodec.load(BASE / "codec.safetensors")
    listeners: dict[str, tuple[SpeechRecogniser, int]] = {"in-domain": (in_domain(), len(texts))}
    if options.open_rows:
        few = min(options.open_rows, len(texts))
        listeners |= {"open": (PocketsphinxRecogniser(None, None), few), "whisper": (installed(), few)}
    counts = ", ".join(f"{name} {count}" for name, (_, count) in listeners.items())
    print(f"held-out replies: {counts}; word error rate (real-time factor of the recogniser)")
    held = []
    for style in REPLY_MANNERS:
        raw = spoken(texts, style)
        seconds = sum(map(len, raw)) / 16_000
        codes, encoding = timed(codec.encode, raw)
        coded, decoding = timed(codec.decode, codes)
        for name, waves in (("raw", raw), ("codec", coded)):
            cells = [f"{style or 'normal':7} {name:6}"]
            for listener, (recogniser, count) in listeners.items():
                rate, factor = error_rate(recogniser, texts[:count], waves[:count])
                cells.append(f"{listener} {100 * rate:5.1f} % ({factor:.3f})")
                if listener == "in-domain":
                    held.append(rate <= BOUNDS[name])
                    cells.append(f"bound {100 * BOUNDS[name]:g} %: {'held' if held[-1] else 'BROKEN'}")
            print("  ".join(cells), flush=True)
        speed = f"encode {encoding / seconds:.4f}x, decode {decoding / seconds:.4f}x real time"
        print(f"{style or 'normal':7} {speed}", flush=True)
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
