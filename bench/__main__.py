"""`python -m bench COMMAND [--write]`."""

import argparse
import importlib
import sys

COMMANDS = ("resources", "sass", "readme")

parser = argparse.ArgumentParser(prog="python -m bench", description=__import__("bench").__doc__.split("\n")[0])
parser.add_argument("command", choices=COMMANDS)
parser.add_argument("--write", action="store_true", help="write what is committed anew, where it differs")
args = parser.parse_args()
sys.exit(importlib.import_module(f"bench.{args.command}").run(write=args.write))
