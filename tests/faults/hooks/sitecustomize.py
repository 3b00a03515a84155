"""Found first on PYTHONPATH by every Python process of a run with faults: hub and workers get their traps."""

import os
import sys
import traceback

if any(word in ("tsugi_cli.finetune.worker", "tsugi_cli.app") for word in sys.orig_argv):
    try:
        from tests.faults import inside

        inside.lay(sys.orig_argv)
    except BaseException:  # noqa: BLE001  (a process without its traps would go on, and prove nothing)
        traceback.print_exc()
        os._exit(70)
