"""Data sets of others, one row at a time: containers (lines, tables, shards) and what rows mean (forms).

    read_records(files)      what a container holds: ``SourceRecord``, in the order it stands there
    detect_row_form(record)  whose keys these are
    draft_row(record, form)  the row, its clips still as the source has them

Invariant: a source is hostile until it was read. Nothing is extracted, no path of a source is followed
outside the folder of its audio, one row is in memory and has a bound (``tables`` says what Arrow holds beside
it), and no code of a data set is run.
"""
