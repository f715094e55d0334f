"""The command line: one module a verb, views of what is shown, progress of a run.

In: arguments and a sweep file. Out: lines, tables or JSON on stdout, sentences on stderr, an exit code.
Never: holds a rule of its own: knobs live in the sweep file.
"""
