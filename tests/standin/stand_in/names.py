"""The device's name, and where the project begins."""

from pathlib import Path

NAME = "standin"
HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
