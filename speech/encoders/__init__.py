"""Frozen audio encoders: continuous vectors for a prompt's clips. One file per family that has one.

Each is imported where it is made; ``weights.py`` reads their tensors.
"""
