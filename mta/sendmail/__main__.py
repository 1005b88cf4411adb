"""`python -m mta.sendmail`."""

import sys

from mta.sendmail.command import main

sys.exit(main())
