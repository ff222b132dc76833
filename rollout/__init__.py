"""Prompts in, replies out: engines that sample, and the worker that turns ids into speech."""
