"""`python -m lmeval_task` is `p2l-lm-eval`, for launchers that start a module on several processes."""

import sys

from lmeval_task.cli import main

sys.exit(main())
