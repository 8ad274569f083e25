"""Dashboards as Python that writes the JSON Grafana reads: `python -m deploy.grafana`."""
