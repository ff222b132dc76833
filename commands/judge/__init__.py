"""``wavgate judge probe | score | calibrate``: an endpoint, finished replies, people's ratings. Read ``verbs.py``."""
