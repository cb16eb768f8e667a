"""What a request's authentication costs: ``python -m tests.benchmarks``, from a checkout with its test extra.

Nothing here passes or fails by the clock; what is counted is also asserted, in ``tests/test_benchmarks.py``.
``stores.py`` stands apart: it needs the servers of the tests, and pytest runs it.
"""
