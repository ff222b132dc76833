"""Frozen encoders of continuous audio, one file per family that has one; imported where one is made."""
