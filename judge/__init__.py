"""Replies in, verdicts out. A verdict is a score or a reason; no score is ever made up."""
