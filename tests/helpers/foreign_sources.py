"""One small data set in every container that is read: JSONL, parquet, ``save_to_disk``, tar."""

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from pyarrow import ipc, parquet

from speech.sound import audio

AUDIO = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])  # as datasets' Audio
SCHEMA = pyarrow.schema(
    [
        ("id", pyarrow.string()),
        (
            "messages",
            pyarrow.list_(pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())])),
        ),
        ("audios", pyarrow.list_(AUDIO)),
        ("sft_target_text", pyarrow.string()),
        ("sft_target_audio", AUDIO),
        ("question_text", pyarrow.string()),
        ("task_type", pyarrow.string()),
        ("speaker", pyarrow.string()),
    ]
)
LUKE = {"role": "system", "content": "You are Luke."}


def clip(folder: Path, name: str, pitch: float, rate: int = 16_000) -> str:
    """A tenth of a second of a tone below ``folder``; its name."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = 0.3 * np.sin(2 * np.pi * pitch * np.arange(rate // 10) / rate)
    audio.write(path, wave.astype(np.float32), rate)
    return name


def rows(folder: Path, count: int) -> list[dict[str, Any]]:
    """WavAlign's published rows with history, their clips below ``folder``."""
    made = []
    for i in range(count):
        asked = [clip(folder, f"q/{i}-{j}.wav", 200 + 10 * i + j) for j in range(2)]
        made.append(
            {
                "id": f"row/{i}",
                "messages": [
                    LUKE,
                    {"role": "user", "content": "<|audio|>"},
                    {"role": "assistant", "content": "it is ten"},
                    {"role": "user", "content": "answer aloud\n\n<|audio|>"},
                ],
                "audios": asked,
                "sft_target_text": f"it is {i}",
                "sft_target_audio": clip(folder, f"a/{i}.flac", 400 + 10 * i),
                "question_text": f"what is {i}",
                "task_type": "s2s",
                "speaker": "x",
            }
        )
    return made


def as_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """One JSON object per line; clips are named."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _embedded(folder: Path, row: Mapping[str, Any]) -> dict[str, Any]:
    def one(name: str) -> dict[str, Any]:
        return {"bytes": (folder / name).read_bytes(), "path": Path(name).name}

    clips = {
        "audios": [one(name) for name in row["audios"]],
        "sft_target_audio": one(row["sft_target_audio"]),
    }
    return {**row, **clips}


def as_table(folder: Path, rows: Sequence[Mapping[str, Any]]) -> Any:
    """An Arrow table; clips are in it."""
    return pyarrow.Table.from_pylist([_embedded(folder, row) for row in rows], SCHEMA)


def as_parquet(path: Path, folder: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """A parquet file of two row groups."""
    parquet.write_table(as_table(folder, rows), path, row_group_size=max(1, len(rows) // 2))
    return path


def as_saved(path: Path, folder: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """What ``Dataset.save_to_disk(path, num_shards=2)`` writes (datasets 5.2.0)."""
    path.mkdir()
    table, half = as_table(folder, rows), len(rows) // 2
    names = [f"data-{i:05d}-of-00002.arrow" for i in range(2)]
    for name, part in zip(names, (table.slice(0, half), table.slice(half)), strict=True):
        with pyarrow.OSFile(str(path / name), "wb") as file, ipc.new_stream(file, SCHEMA) as stream:
            stream.write_table(part, max_chunksize=2)
    (path / "state.json").write_text(
        json.dumps(
            {
                "_data_files": [{"filename": name} for name in names],
                "_fingerprint": "d63305d87e775b43",
                "_format_columns": SCHEMA.names,
                "_format_kwargs": {},
                "_format_type": None,
                "_output_all_columns": False,
                "_split": None,
            }
        )
    )
    (path / "dataset_info.json").write_text('{"citation": "", "description": "", "features": {}}')
    return path


def member(name: str, content: bytes = b"", **header: Any) -> tuple[tarfile.TarInfo, bytes]:
    """A file of an archive; ``header``: what else its header says."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in header.items():
        setattr(info, key, value)
    return info, content


def as_tar(path: Path, members: Sequence[tuple[tarfile.TarInfo, bytes]], mode: str = "w") -> Path:
    """An archive of these files in this order."""
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return path


def samples(folder: Path, rows: Sequence[Mapping[str, Any]]) -> list[tuple[tarfile.TarInfo, bytes]]:
    """Files of a shard: KEY.json and its clips; the reply's is found by its name alone."""
    files = []
    for row in rows:
        key = row["id"]
        names = [f"{i}.wav" for i in range(len(row["audios"]))]
        left = {name: value for name, value in row.items() if name not in ("id", "sft_target_audio")}
        files.append(member(f"{key}.json", json.dumps(left | {"audios": names}).encode()))
        for name, said in zip(names, row["audios"], strict=True):
            files.append(member(f"{key}.{name}", (folder / said).read_bytes()))
        files.append(member(f"{key}.target.flac", (folder / row["sft_target_audio"]).read_bytes()))
        files.append(member(f"{key}.txt", b"not read"))
    return files
