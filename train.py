"""Trains a detector: python train.py --config FILE, see jaxseg/commands/train.py."""

import sys

from jaxseg.commands.train import main

if __name__ == "__main__":
    sys.exit(main())
