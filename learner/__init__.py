"""Verdicts in, new policy version out: gate, advantages, loss and the sharded optimiser step."""
