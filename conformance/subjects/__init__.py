"""Our own networks under test: plans name a function of a file, `"../subjects/FILE.py:FUNCTION"`.

Each file says which models and data it reads; nothing is downloaded. They are loaded as any file of
a user's is, and import each other by their plain names.
"""

from pathlib import Path


def source_of(subject: str) -> str:
    """Return the source of a subject in this folder, `FILE.py:FUNCTION`, with the whole path."""
    return str(Path(__file__).parent / subject)
