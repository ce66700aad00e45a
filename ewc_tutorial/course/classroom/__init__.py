"""What a teacher hands out, made from the lessons themselves; nothing is kept twice.

    python -m ewc_tutorial.course.classroom          # what `make classroom` runs

writes ``build/classroom/``: the student version of every lesson, in which no cell holds an answer,
and a course for nbgrader. ``questions`` finds the exercises of a lesson, ``versions`` makes the
student version and the assignment, :mod:`ewc_tutorial.course.mark` gives the points.

Two marks in a cell's metadata say how the student version differs: the tag ``answer`` hides the
code of a cell and leaves its output, and ``student`` lists pairs of a passage and what stands in
its place. The cells of ``reveal`` are left out by themselves.
"""
