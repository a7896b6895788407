"""Side-by-side measurement: contests under one recipe and budget, and sheets of exact counts.

Nothing is imported here, so that the processes of single runs start quickly.
"""
