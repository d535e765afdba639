"""Shows a Report: text, Markdown, HTML, JSON."""
