"""Where the command `resetguard` begins: an interrupt while the library is still being imported prints no traceback.

The library itself is imported as `statemachine`; this module is for the installed script and for `python -m resetguard`.
"""

import sys

INTERRUPTED = 130
STORE_TROUBLE = 3

try:
    from statemachine.cli import main
except KeyboardInterrupt:
    sys.stderr.write("resetguard: interrupted\n")
    raise SystemExit(INTERRUPTED) from None
except ImportError as error:
    if sys.platform != "win32":
        raise
    sys.stderr.write(f"resetguard: {error}\n")
    raise SystemExit(STORE_TROUBLE) from None

__all__ = ["main"]

if __name__ == "__main__":
    main()
