"""The command: ``massive-sft``, or ``python -m massive_sft``."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; Ctrl-C while it is still imported, which takes half a second, ends it as later on."""
    try:
        from massive_sft.cli.app import main as run
    except KeyboardInterrupt:
        from massive_sft.core.errors import ExitCode
        from massive_sft.core.stop import INTERRUPTED

        sys.stderr.write(f"{INTERRUPTED}\n")
        sys.exit(ExitCode.INTERRUPTED)
    run()


if __name__ == "__main__":
    main()
