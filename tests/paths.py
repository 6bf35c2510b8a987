"""Where the repository lies, and real data beside it, which need not be there."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REAL = ROOT.parent / "shared" / "real" / "manifest.jsonl"
