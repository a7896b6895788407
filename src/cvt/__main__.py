"""`python -m cvt`, and with it `torchrun -m cvt`."""

import sys

from cvt.cli import main

if __name__ == "__main__":
    sys.exit(main())
