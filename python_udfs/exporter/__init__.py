"""What Prometheus reads of the store, and its alert rules: `marketprism exporter`, `marketprism alerts`."""
