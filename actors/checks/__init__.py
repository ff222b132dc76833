"""What can be wrong with a job, found before anything starts.

Read ``prepare.py`` (a command line to a ``Job``), which asks the others.
"""
