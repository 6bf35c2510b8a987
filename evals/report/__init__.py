"""summary.json and report.html, from files alone."""
