"""Reports: tables, figures and a page, made from a run folder alone.

Rooms, each importing only those before it: ``notation``, ``analysis``, ``tables`` and ``figures``, and the modules here.
"""
