"""What Prometheus would have scraped of hours that never were, as blocks that a real Prometheus serves."""
