"""Programs that print the numbers of the README. Not imported by the product."""

from rollout.environment import set_environment

set_environment()
