"""Ray and the run: who exists, and who waits for whom. The only folder that imports ray."""

from rollout.environment import set_environment

set_environment()
