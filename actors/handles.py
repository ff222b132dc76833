"""Thin Ray wrappers around the plain classes: what one actor of each role can be asked.

The heavy data stays in the object store: a rollout actor yields (reply, [reference to its speech]), a judge
actor is given that reference, a learner publishes its weights as a reference. The driver only forwards.
"""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import ray

from actors.run.provenance import hash_source
from actors.weight_sync import PublishedWeights
from conf.schema import Config
from judge.rules.voice import SpeechNorms, VoiceSample, measure_voice_sample
from judge.types import JudgeTask, ReplyJudgement
from learner.diagnosis import PolicyDiagnosis
from learner.types import StepBatch, StepResult, TrainingReply
from rollout.engine import WeightManifest
from rollout.types import Prompt, Reply, ReplyKey, Sampling, Speech
from speech.data.manifest import ManifestRow
from speech.data.pairs import PairRow
from speech.dataset import Example, PairExample


class BaseActor:
    """What every actor answers."""

    def hello(self) -> dict[str, Any]:
        """Who this is and which source tree it runs."""
        return {"pid": os.getpid(), "node": socket.gethostname(), "source": hash_source()}


class RolloutActor(BaseActor):
    """One engine. Async: it can be asked for its health while it generates or encodes."""

    def __init__(self, config: Config) -> None:
        from rollout.worker import RolloutWorker, build_engine
        from speech.families import load_family

        family = load_family(config.model)
        self._engine: Any = build_engine(config, family)
        self._worker = RolloutWorker(self._engine, family, config.data.max_seconds)
        self._encoding = asyncio.Lock()  # encoders are one thread's; who waits here takes no thread

    async def encode(self, manifest: Path, rows: Sequence[ManifestRow]) -> list[Example]:
        """Rows of a manifest to ids (audio is read and encoded here).

        ValueError: a row the family cannot express.
        """
        async with self._encoding:
            return await asyncio.to_thread(self._worker.encode, manifest, rows)

    async def encode_pairs(self, manifest: Path, rows: Sequence[PairRow]) -> list[PairExample]:
        """Pairs of a manifest to ids. ValueError: a row the family cannot express, or ids of another one."""
        async with self._encoding:
            return await asyncio.to_thread(self._worker.encode_pairs, manifest, rows)

    async def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> AsyncIterator[tuple[Reply, list[Any]]]:
        """Every reply as it finishes, with a reference to its speech in a list (else Ray fetches it)."""
        async for reply, speech in self._worker.generate(prompts, sampling):
            yield reply, [ray.put(speech)]

    async def pause(self) -> None:
        """Stop stepping."""
        await self._worker.pause()

    async def resume(self) -> None:
        """Step again."""
        await self._worker.resume()

    async def update_weights(self, manifest: WeightManifest, payload: Any) -> int:
        """Load a published version; the version read back."""
        return await self._worker.update_weights(manifest, payload)

    async def transfer(self, call: str, info: dict[str, Any] | None, version: int | None) -> None:
        """One control call of vLLM's own GPU transports; the data goes from GPU to GPU."""
        await self._engine.transfer(call, info, version)

    async def version(self) -> int:
        """The policy version, read back from the engine."""
        return self._worker.version

    async def health(self) -> dict[str, float]:
        """The engine's counters."""
        return dict(self._worker.health())

    async def close(self) -> None:
        """Free the engine."""
        self._worker.close()


class JudgeActor(BaseActor):
    """One judge: scores one reply at a time."""

    voice: SpeechNorms | None = None  # how the policy speaks when nothing is asked of it; not known yet, or not at all

    def __init__(self, config: Config) -> None:
        from judge.panel import build_panel
        from judge.worker import JudgeWorker

        self._worker = JudgeWorker(build_panel(config.judge, Path.cwd(), lambda: self.voice))

    def know_voice(self, norms: SpeechNorms) -> None:
        """From now on replies are held against this voice."""
        self.voice = norms

    def sample_voice(self, text: str, speech: Speech) -> VoiceSample | None:
        """What a reply shows of its voice."""
        return measure_voice_sample(text, speech)

    def score(self, reply: Reply, speech: Speech, task: JudgeTask, audio: Path | None) -> ReplyJudgement:
        """The verdicts on one reply; its audio is kept at ``audio`` when given."""
        return self._worker.score(reply, speech, task, audio)


class LearnerActor(BaseActor):
    """One learner rank. Every method is collective: the driver calls it on all ranks at once."""

    def __init__(self, config: Config, rank: int) -> None:
        self._config, self._rank = config, rank
        self._learner: Any = None
        self._client: Any = None
        self._trainer: Any = None
        self._linked: list[str] = []  # engines that the trainer's transport reaches

    def address(self) -> tuple[str, int]:
        """This node's address and a free port, for rank 0 to host the group."""
        with socket.socket() as free:
            free.bind(("", 0))
            return ray.util.get_node_ip_address(), int(free.getsockname()[1])

    def start(self, host: str, port: int) -> None:
        """Join the group and load the policy."""
        import torch

        from learner.ranks import join_process_group
        from learner.step import Learner

        torch.set_num_threads(1)
        world = self._config.learner.ranks
        join_process_group(
            rank=self._rank, world=world, address=f"{host}:{port}", timeout_s=self._config.learner.timeout_s
        )
        self._learner = Learner(self._config, self._rank, world)

    def step(self, batch: StepBatch) -> StepResult:
        """One optimiser step."""
        result: StepResult = self._learner.step(batch)
        return result

    def diagnose(self, batch: StepBatch) -> PolicyDiagnosis:
        """A look at the policy before it learns from this batch."""
        diagnosis: PolicyDiagnosis = self._learner.diagnose(batch)
        return diagnosis

    def penalties(self, rollouts: Sequence[TrainingReply]) -> dict[ReplyKey, float]:
        """What each reply's reward loses to the KL penalty."""
        penalty_of_reply: dict[ReplyKey, float] = self._learner.penalties(rollouts)
        return penalty_of_reply

    def publish(self, version: int) -> PublishedWeights | None:
        """The weights as one buffer in the object store, from rank 0; None from the others."""
        packed = self._learner.weights(version)
        if packed is None:
            return None
        manifest, buffer = packed
        return PublishedWeights(manifest, [ray.put(buffer)])

    def send(self, engines: Sequence[Any], version: int) -> None:
        """The weights of this version over CUDA IPC or NCCL; rank 0 opens and closes the engines."""
        from rollout.vllm_transfer import TransferClient, init_trainer_transfer
        from rollout.weights import TORCH_DTYPES

        names = [str(engine) for engine in engines]
        if names != self._linked:  # first time, or an engine was replaced
            parallel = self._config.cluster.tensor_parallel

            def fan_out(call: str, infos: Sequence[dict[str, Any] | None], at: int | None) -> None:
                transfers = [
                    engine.transfer.remote(call, info, at) for engine, info in zip(engines, infos, strict=True)
                ]
                ray.get(transfers, timeout=self._config.learner.timeout_s)

            self._client = TransferClient(fan_out, len(engines), parallel)
            host, port = self.address()
            self._trainer = init_trainer_transfer(
                "ipc" if self._config.cluster.weight_transfer == "ipc" else "nccl",
                self._learner.policy.lm,
                self._learner.family,
                self._client,
                dtype=TORCH_DTYPES[self._config.model.dtype],
                rank=self._rank,
                master_address=host,
                master_port=port,
                world_size=1 + len(engines) * parallel,
            )
            self._linked = names
        self._client.version = version
        self._trainer.send_weights()

    def save(self, folder: Path) -> None:
        """This rank's part of a checkpoint."""
        self._learner.save(folder)

    def load(self, folder: Path) -> None:
        """Continue from a checkpoint."""
        self._learner.load(folder)

    def export(self, folder: Path) -> None:
        """The policy as a Hugging Face folder."""
        self._learner.export(folder)
