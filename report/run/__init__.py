"""The page of one run. Read ``page.py``; each other file is a section of it."""
