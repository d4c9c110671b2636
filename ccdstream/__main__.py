"""`python -m ccdstream`."""

from ccdstream.cli import app

app()
