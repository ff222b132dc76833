"""Programs that print the figures of docs/results.md and README. Not imported by the product."""

from rollout.environment import set_environment

set_environment()
