"""Judging by a model behind an endpoint: rubrics, readings, comparisons, canaries, calibration.

Read ``rubric.py`` (what is asked), ``answers.py`` (how an answer is read), ``caller.py`` (one reading),
``reply_judge.py``, ``endpoint_judge.py`` (all axes of one endpoint), ``panel.py`` (together with the local rules);
``build.py`` puts it all together from the settings.
"""
