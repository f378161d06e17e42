"""Unrolled differentiation: the exact effect of every training row's weight, through every step of a small training.

A neighbour of the house, not a room in it: where the other methods look at the end of a training, this one runs the
training again. It shares tasks, rows and ``Scores``.

========================= ==========================================================================
``course``                what a training does step by step: rows, rates, divisors, the optimiser
``rules``                 one optimiser step and its derivative (SGD with momentum, smooth AdamW)
``training``              a model, rows and a course: one step forward, one step back
``reverse``               all steps back, with few states in memory (REPLAY)
``smoothness``            may the derivative be believed? three trainings (metasmoothness)
``replay``                trainings with rows left out in place: banks that repeat the very same run
``front``                 model, rows and questions in, ``Scores`` out
========================= ==========================================================================
"""
