"""`clipgs` as the tutorials' tests run it: fits are small, and a served page is looked at once.

A fit of one mesh does not read config.yaml, so what is small for the workflow is made small for it here.
"""

import subprocess
import sys
from urllib.request import urlopen

FIT = {"views": {"pixels": 32}, "fit": {"gaussians": 300, "steps": 20}}


def serve(arguments: list[str]) -> int:
    """Starts the server on a free port, reads the page at the address that it prints, and stops it."""
    words = [sys.executable, "-m", "clipgs", "serve", *arguments, "--port", "0"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr
            address = next(word for line in server.stderr for word in line.split() if word.startswith("http://"))
            with urlopen(address, timeout=60) as page:
                return int(b"<title>" not in page.read())
        finally:
            server.terminate()


def main() -> int:
    from clipgs import cli
    from clipgs.splats import from_mesh

    if sys.argv[1:2] == ["serve"]:
        return serve(sys.argv[2:])
    from_mesh._QUICK = FIT
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
