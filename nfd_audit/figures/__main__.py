"""The command `nfd-figures`, as `python -m nfd_audit.figures`."""

import sys

from nfd_audit.figures import main

sys.exit(main())
