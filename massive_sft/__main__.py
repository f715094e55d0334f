"""``python -m massive_sft``."""

from massive_sft.cli.app import main

main()
