"""Evaluates a detector: python eval.py --checkpoint RUN_OR_FILE, see jaxseg/commands/evaluate.py."""

import sys

from jaxseg.commands.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
