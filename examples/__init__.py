"""Worlds to train in: data, base models and the programs that build them. Product code never imports this."""

from rollout.environment import set_environment

set_environment()
