"""The HTTP server: many clients and protocols, one score."""
