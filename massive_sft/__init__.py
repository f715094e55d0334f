"""Run supervised fine-tuning studies as one declared, resumable sweep."""

__version__ = "0.1.0"
