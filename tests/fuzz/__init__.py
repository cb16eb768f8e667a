"""Fuzzing of all that reads bytes from strangers: ``python -m tests.fuzz --runs N [target …]``.

``targets`` are functions of bytes that raise for a fault, ``run`` drives them: guided by coverage where
atheris is installed, else by plain mutation. ``corpus`` holds, for each target, inputs that together reach
all that was ever reached; ``tests/test_fuzzing.py`` runs them.
"""
