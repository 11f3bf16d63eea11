"""The Grafana dashboards of the chart: what each shows (pipe, fleet), of which panels and queries. Writes no file."""
