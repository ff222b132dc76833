"""Two of a user's own reference replies, as the recogniser that will judge hears them.

What a recogniser does not hear in a clear recording it will not hear in a reply, and rewards rest on it.
"""

from collections.abc import Sequence
from pathlib import Path

from actors.errors import UserError
from conf.judging import AsrConfig
from judge.recognisers.choose import build_recogniser
from judge.recognisers.pocketsphinx import POCKETSPHINX_SAMPLE_RATE, word_error_rate
from judge.types import CallFailed
from speech.data.manifest import ManifestRow
from speech.sound.audio import read_clips, resolve_inside

WER_WARNING_BOUND = 0.3  # word error rate from which a line warns
EMBEDDED_DATA_FOLDER = Path("examples/tiny_world/data")


def is_user_manifest(manifest: Path) -> bool:
    """Whether it is a user's, and not one of the embedded manifests."""
    return not manifest.absolute().parent.as_posix().endswith(EMBEDDED_DATA_FOLDER.as_posix())


def describe_reference_transcripts(
    asr: AsrConfig, manifest: Path, rows: Sequence[ManifestRow], max_seconds: float
) -> list[str]:
    """A line for each of two references, the first and the last, and one that warns above ``WER_WARNING_BOUND``.

    UserError: there is no such recogniser, or it fails.
    """
    lines, rates = [], []
    try:
        listener = build_recogniser(asr, Path.cwd())
        for row in [rows[0], rows[len(rows) - 1]][: len(rows)]:
            clips = [resolve_inside(manifest.parent, clip) for clip in row.sft_target_audio]
            wave = read_clips(clips, POCKETSPHINX_SAMPLE_RATE, max_seconds)
            transcript = listener.transcribe(wave, POCKETSPHINX_SAMPLE_RATE)
            rates.append(word_error_rate(row.sft_target_text, transcript))
            target = _shorten_text(row.sft_target_text)
            lines.append(f"{asr.by} hears {row.id}: {_shorten_text(transcript)} for {target}, WER {rates[-1]:.0%}")
    except (CallFailed, ValueError) as failure:
        raise UserError(f"judge.asr: {failure}") from failure
    if sum(rates) > WER_WARNING_BOUND * len(rates):
        wrong = sum(rates) / len(rates)
        lines.append(
            f"warning: {asr.by} gets {wrong:.0%} of the words of these references wrong, and every reward"
            " rests on what it hears: judge.asr.by and judge.asr.path name another recogniser"
        )
    return lines


def describe_user_references(
    asr: AsrConfig, manifest: Path, rows: Sequence[ManifestRow], max_seconds: float
) -> list[str]:
    """The same; nothing for the embedded manifests."""
    return describe_reference_transcripts(asr, manifest, rows, max_seconds) if is_user_manifest(manifest) else []


def _shorten_text(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:77]}...")
