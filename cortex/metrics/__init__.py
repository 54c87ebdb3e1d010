"""What Prometheus may ask of the gateway. Imported only once PROMETHEUS_MULTIPROC_DIR is set."""
