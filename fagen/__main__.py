"""``python -m fagen``."""

import sys

from fagen.cli import main

sys.exit(main())
