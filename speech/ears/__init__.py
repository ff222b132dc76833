"""Frozen encoders of continuous audio, one file each; imported where a family's ear is made, not before."""
