"""A judge of the tiny world behind an OpenAI-compatible address: no model, but its HTTP, modes and grades.

It knows the world's rules and measures sound. What it is not: a judge of anything else, or of beauty.
"""
