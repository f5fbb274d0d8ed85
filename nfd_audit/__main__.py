"""The command `nfd-audit`, as `python -m nfd_audit`."""

import sys

from nfd_audit.command import main

sys.exit(main())
