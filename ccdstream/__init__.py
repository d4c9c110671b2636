"""Streaming colonoscopy video analysis: video in, anomaly overlay and timed alerts out."""

__version__ = "0.1.0"
NOTICE = "Research software. Not a medical device. Not for clinical decisions."
