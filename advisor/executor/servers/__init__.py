"""Engines started here or found behind a URL: loaded, measured, judged, remembered."""
