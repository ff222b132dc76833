"""Two of a user's own reference replies, as the recogniser that will judge hears them.

What a recogniser does not hear in a clear recording it will not hear in a reply, and rewards rest on it.
"""

from collections.abc import Sequence
from pathlib import Path

from actors.errors import UserError
from conf.judging import AsrConfig
from conf.schema import Config
from judge.asr import SAMPLE_RATE, word_error_rate
from judge.recognisers import recogniser_from
from judge.types import CallFailed
from speech.audio import inside, read_clips
from speech.manifest import Row

BOUND = 0.3  # word error rate from which a line warns
EMBEDDED = Path("examples/tiny_world/data")


def own(manifest: Path) -> bool:
    """Whether it is a user's, and not one of the embedded manifests."""
    return not manifest.absolute().parent.as_posix().endswith(EMBEDDED.as_posix())


def heard(asr: AsrConfig, manifest: Path, rows: Sequence[Row], max_seconds: float) -> list[str]:
    """A line for each of two references, the first and the last, and one that warns above ``BOUND``.

    UserError: there is no such recogniser, or it fails.
    """
    lines, rates = [], []
    try:
        listener = recogniser_from(asr, Path.cwd())
        for row in [rows[0], rows[len(rows) - 1]][: len(rows)]:
            clips = [inside(manifest.parent, clip) for clip in row.sft_target_audio]
            wave = read_clips(clips, SAMPLE_RATE, max_seconds)
            said = listener.transcribe(wave, SAMPLE_RATE)
            rates.append(word_error_rate(row.sft_target_text, said))
            target = _short(row.sft_target_text)
            lines.append(f"{asr.by} hears {row.id}: {_short(said)} for {target}, WER {rates[-1]:.0%}")
    except (CallFailed, ValueError) as failure:
        raise UserError(f"judge.asr: {failure}") from failure
    if sum(rates) > BOUND * len(rates):
        wrong = sum(rates) / len(rates)
        lines.append(
            f"warning: {asr.by} gets {wrong:.0%} of the words of these references wrong, and every reward"
            " rests on what it hears: judge.asr.by and judge.asr.path name another recogniser"
        )
    return lines


def heard_by(config: Config, manifest: Path, rows: Sequence[Row]) -> list[str]:
    """The same with the settings of a run; nothing for the embedded manifests."""
    return heard(config.judge.asr, manifest, rows, config.data.max_seconds) if own(manifest) else []


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:77]}...")
