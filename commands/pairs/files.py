"""The files of ``wavgate pairs --to OUT.jsonl``.

    OUT.jsonl            the pairs, written whole at the end
    OUT.journal.jsonl    what became of each prompt, as it was known; the same command goes on from it
    OUT.files/audio      clips of the prompts, named by their content, so that no clip is here twice
    OUT.files/replies    the sound of both replies of each pair
    OUT.files            besides: summary.json, events.jsonl, logs

OUT.jsonl and OUT.files together are complete: they can be moved, and need nothing of the prompts' manifest.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from actors.errors import UserError
from rollout.types import Reply
from speech.data.manifest import ManifestRow
from speech.data.pairs import PairRow
from speech.sound.audio import resolve_inside
from store.files import replace_atomically


class PairFiles:
    """Where things go. UserError: OUT cannot be written there, or is not ours to write over.

    Example:
        files = PairFiles(Path("pairs.jsonl"))
        path = files.sampling_path(reply)        # a judge writes the reply's sound there
        audio = files.keep(reply)           # it is one of a pair: relative to OUT's folder
        files.remove_unkept_audio()                      # the others
        files.write(rows)
    """

    def __init__(self, to: Path) -> None:
        self.to = to.absolute()
        self.folder, self.journal = self.to.with_suffix(".files"), self.to.with_suffix(".journal.jsonl")
        if to.suffix != ".jsonl" or not self.to.parent.is_dir():
            raise UserError(f"--to {to}: must be a .jsonl file in a folder that exists")
        if not self.journal.exists():
            for taken in (self.to, self.folder):
                if taken.exists():
                    raise UserError(f"--to {to}: {taken} exists, and no {self.journal.name} that it belongs to")

    def start(self) -> None:
        """Make the folders. OSError: not writable."""
        for name in ("audio", "replies"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self.remove_unkept_audio()

    def sampling_path(self, reply: Reply) -> Path:
        """Where the sound of a reply is as long as it is not known whether it is one of a pair."""
        return self.folder / "sampling" / _name_audio_file(reply)

    def keep(self, reply: Reply) -> tuple[str, ...]:
        """Keep the sound of a reply, if it has any."""
        path = self.folder / "replies" / _name_audio_file(reply)
        try:
            self.sampling_path(reply).replace(path)
        except FileNotFoundError:
            return ()
        return (self._relative(path),)

    def keep_prompt_clips(self, row: ManifestRow, folder: Path) -> tuple[tuple[str, ...], ...]:
        """Keep the clips of a prompt from a manifest in ``folder``."""
        return tuple(tuple(self._clip(resolve_inside(folder, clip)) for clip in clips) for clips in row.audios)

    def remove_unkept_audio(self) -> None:
        """Remove the sound of replies that are not kept."""
        shutil.rmtree(self.folder / "sampling", ignore_errors=True)

    def write(self, rows: Iterable[PairRow]) -> None:
        """OUT.jsonl, whole or not at all, and away with replies that are in none of its rows."""
        named: set[str] = set()
        with replace_atomically(self.to) as unfinished, unfinished.open("w", encoding="utf-8") as file:
            for row in rows:
                file.write(row.model_dump_json() + "\n")
                named.update(row.chosen.audio + row.rejected.audio)
            file.flush()
            os.fsync(file.fileno())
        for reply in (self.folder / "replies").iterdir():
            if self._relative(reply) not in named:
                reply.unlink()

    def summary(self, figures: Mapping[str, Any]) -> None:
        """What became of the prompts, in numbers."""
        (self.folder / "summary.json").write_text(json.dumps(figures, indent=1) + "\n")

    def _clip(self, source: Path) -> str:
        """A copy under the name of its content; what is hashed is the copy."""
        copy = self.folder / "audio" / ".copy"
        shutil.copyfile(source, copy)
        with copy.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        path = copy.with_name(f"{digest[:32]}{source.suffix.lower()}")
        copy.replace(path)
        return self._relative(path)

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.to.parent).as_posix()


def read_sampled_tokens(to: Path) -> float | None:
    """Tokens of all replies that OUT's pairs were chosen from; None where its summary does not tell."""
    try:
        summary = json.loads((to.with_suffix(".files") / "summary.json").read_bytes())
    except (OSError, ValueError):
        return None
    count = summary.get("sampled_tokens") if isinstance(summary, dict) else None
    return float(count) if isinstance(count, int) else None


def _name_audio_file(reply: Reply) -> str:
    return f"{reply.prompt_id}_{reply.index}.ogg"
