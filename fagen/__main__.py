"""``fagen`` and ``python -m fagen``: the command line, also where Ctrl-C comes while it loads."""

import sys


def main() -> int:
    try:
        from fagen.cli import main as run

        return run()
    except KeyboardInterrupt:  # run() answers its own; this one came during its import
        sys.stderr.write("interrupted\n")
        return 130


if __name__ == "__main__":
    sys.exit(main())
