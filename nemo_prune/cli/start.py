"""Where the command begins: Ctrl-C while the command line is imported ends it quietly too."""

import sys


def run() -> None:
    """Run the command line."""
    try:
        from nemo_prune.cli.main import main

        main()
    except KeyboardInterrupt:
        if sys.stderr is not None:
            sys.stderr.write("nemo-prune: interrupted\n")
        sys.exit(130)
