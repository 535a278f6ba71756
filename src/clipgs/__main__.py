import sys

from clipgs.cli import main

sys.exit(main())
