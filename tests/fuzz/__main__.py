"""``python -m tests.fuzz``, from the top of the repository."""

import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "adapters")]  # as pytest's ``pythonpath`` has it

if sys.argv[1:2] == ["--guided"]:  # the process in which atheris runs one target
    from fuzz.guided import main
else:
    from fuzz.run import main

sys.exit(main(sys.argv[1:]))
