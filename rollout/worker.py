"""The rollout worker: an engine, a model family and its codec; manifest rows in, spoken replies out.

    rows ── encode ──► prompts ── engine ──► ids, log-probs ── channels, text, codec ──► (Reply, Speech)

Invariants: the ids of a Reply are the ids that were sampled; a reply is decoded to speech as soon as it
finishes, and one without codes is silence (an empty wave), never an error. Rows are encoded by one thread at
a time, which need not be the event loop's: what it gives does not depend on the order of the calls.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from conf.schema import Config
from rollout.engine import Engine, RawReply, WeightManifest
from rollout.sampling import check_sampling
from rollout.types import Prompt, Reply, Sampling, Speech
from speech.data.manifest import ManifestRow
from speech.data.pairs import PairRow
from speech.dataset import Example, PairExample, RowEncoder
from speech.families import load_family
from speech.families.base import Family


class RolloutWorker:
    """What a rollout actor wraps; runs as well without one.

    Example:
        worker = build_rollout_worker(config, Path.cwd())
        async for reply, speech in worker.generate(prompts, sampling): ...
        version = await worker.update_weights(manifest, payload)
        worker.close()
    """

    def __init__(self, engine: Engine, family: Family, max_seconds: float = 60.0) -> None:
        """``max_seconds``: longest audio that a row may hold."""
        self._engine = engine
        self._family = family
        self._max_seconds = max_seconds
        self._encoders: dict[Path, RowEncoder] = {}  # by the manifest's folder, which clips are relative to

    @property
    def version(self) -> int:
        """Policy version of the engine's weights."""
        return self._engine.version

    def encode(self, manifest: Path, rows: Sequence[ManifestRow]) -> list[Example]:
        """Ids of a manifest's rows. Reads audio. ValueError: a row the family cannot express."""
        return [self._encoder(manifest).encode(row) for row in rows]

    def encode_pairs(self, manifest: Path, rows: Sequence[PairRow]) -> list[PairExample]:
        """Ids of a manifest's pairs. ValueError: a row the family cannot express, or ids of another one."""
        return [self._encoder(manifest).encode_pair(row) for row in rows]

    async def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> AsyncIterator[tuple[Reply, Speech]]:
        """Yield every (prompt, index) once, decoded, as each finishes.

        ValueError: a prompt that does not fit, by id and lengths.
        """
        raw_replies = self._engine.generate(prompts, sampling)
        try:
            async for raw in raw_replies:
                yield await asyncio.to_thread(self._decode_reply, raw, sampling.grammar)
        finally:
            # Else an abandoned iteration's requests would run until the garbage collector comes by.
            if hasattr(raw_replies, "aclose"):
                await raw_replies.aclose()

    async def update_weights(self, manifest: WeightManifest, payload: Any) -> int:
        """See ``Engine.update_weights``."""
        return await self._engine.update_weights(manifest, payload)

    async def pause(self) -> None:
        """See ``Engine.pause``."""
        await self._engine.pause()

    async def resume(self) -> None:
        """See ``Engine.resume``."""
        await self._engine.resume()

    def health(self) -> Mapping[str, float]:
        """See ``Engine.health``."""
        return self._engine.health()

    def close(self) -> None:
        """Free the engine. Idempotent."""
        self._engine.close()

    def _encoder(self, manifest: Path) -> RowEncoder:
        folder = manifest.parent
        if folder not in self._encoders:
            self._encoders[folder] = RowEncoder(self._family, folder, self._max_seconds)
        return self._encoders[folder]

    def _decode_reply(self, raw: RawReply, grammar: bool) -> tuple[Reply, Speech]:
        spoken = self._family.parse_reply(raw.ids)
        reply = Reply(
            prompt_id=raw.prompt_id,
            index=raw.index,
            ids=raw.ids,
            logps=raw.logps,
            channels=self._family.channels.to_letters(raw.ids),
            sampled=self._family.interleave.sampled_flags(raw.ids) if grammar else (True,) * len(raw.ids),
            versions=raw.versions,
            finish=raw.finish,
            text=spoken.text,
            well_formed=spoken.well_formed,
        )
        return reply, self._decode_speech(spoken.codes)

    def _decode_speech(self, codes: Sequence[int]) -> Speech:
        codec = self._family.codec()
        wave = codec.decode(codes) if codes else np.zeros(0, dtype=np.float32)
        return Speech(wave=wave, sample_rate=codec.sample_rate)


def build_rollout_worker(config: Config, root: Path, version: int = 0) -> RolloutWorker:
    """The worker that the config asks for. ``root``: what a relative ``model.path`` is relative to.

    ``version``: policy version of the weights in that folder. ValueError: unfit checkpoint folder.
    """
    family = load_family(config.model.model_copy(update={"path": root / config.model.path}))
    return RolloutWorker(build_engine(config, family, version), family, config.data.max_seconds)


def build_engine(config: Config, family: Family, version: int = 0) -> Engine:
    """An engine on ``family.path``. Takes seconds: vLLM is imported here, and only when it is chosen.

    ValueError: a family that this way of sampling does not fit.
    """
    check_sampling(config.rollout, family)
    if config.rollout.engine == "hf":
        from rollout.hf_engine import HfEngine

        return HfEngine(family, max_length=config.model.max_length, version=version)
    if config.rollout.engine == "torch":
        from rollout.torch_engine import TorchEngine

        return TorchEngine(
            family,
            max_length=config.model.max_length,
            max_num_seqs=config.rollout.max_num_seqs,
            dtype=config.model.dtype,
            version=version,
        )
    from rollout.vllm_engine import VllmEngine, VllmSettings

    return VllmEngine(
        VllmSettings(
            model=config.model.model_copy(update={"path": family.path}),
            max_num_seqs=config.rollout.max_num_seqs,
            kv_cache_mb=config.rollout.kv_cache_mb,
            grammar=config.rollout.grammar,
            tensor_parallel=config.cluster.tensor_parallel,
            gpu_memory=config.cluster.gpu_memory,
            transfer=config.cluster.weight_transfer,
            version=version,
        ),
        family,
    )
