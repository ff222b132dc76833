"""New weights for every engine: publish -> pause -> transfer -> verify -> resume.

    learner rank 0 --(manifest, buffer in the object store)--> every engine

The driver forwards a reference and never holds weights. The version is compared on both sides: what the
learner published, what each engine reads back.
"""

import asyncio
from dataclasses import dataclass
from typing import Any

from actors.errors import WeightSyncFailed
from rollout.engine import WeightManifest


@dataclass(frozen=True, slots=True)
class PublishedWeights:
    """One policy version in the object store.

    ``payload`` is a one-element list with the buffer's reference.
    """

    manifest: WeightManifest
    payload: list[Any]

    @property
    def version(self) -> int:
        """The learner step whose weights these are."""
        return self.manifest.version


async def update_engine_weights(handle: Any, weights: PublishedWeights, timeout: float) -> None:
    """Give one engine these weights.

    WeightSyncFailed: it reads back another version. Raises what the transfer raises.
    """
    async with asyncio.timeout(timeout):
        await handle.pause.remote()
        version = await handle.update_weights.remote(weights.manifest, weights.payload[0])
        if version != weights.version:
            raise WeightSyncFailed(
                f"weight sync: learner published version {weights.version}, the engine reads back {version}"
            )
        await handle.resume.remote()
