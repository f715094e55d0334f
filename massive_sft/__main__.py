"""``python -m massive_sft``."""

from massive_sft.cli import main

main()
