"""The score-card: what is promised about reliability (R1-R24), counted by one command.

``python -m scorecard`` from a clone (``make scorecard``). Nothing here is part of the installed library.
"""
