"""Found first on PYTHONPATH by every Python process of a run with faults: hub and workers get their traps."""

import sys

if any(word in ("tsugi_cli.finetune.worker", "tsugi_cli.app") for word in sys.orig_argv):
    from tests.faults import inside

    inside.lay(sys.orig_argv)
