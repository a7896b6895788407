"""`python -m cvt`, and with it `torchrun -m cvt`.

Python puts the current folder first on its path for `-m`, and what lies there may be a stranger's:
it is taken off before anything is imported that a file there could pose as. A file called `cvt.py`,
or like a module that Python itself needs to get here, only `python -P -m cvt` or `cvt` pass over.
"""

import os
import sys

if not sys.flags.safe_path and sys.path[:1] == [os.getcwd()]:
    del sys.path[0]

from cvt.cli import main

if __name__ == "__main__":
    sys.exit(main())
